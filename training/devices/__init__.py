"""Where a run computes and in which numbers: precision, placement, quantised weights, several processes."""
