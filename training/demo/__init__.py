"""The shapes world at work: the demo, the command eval, and what both measure and show."""
