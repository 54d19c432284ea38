"""What a run shows of itself: records, grids, sweeps, the hacking watch and the report."""
