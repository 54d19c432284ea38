"""The shipped worlds at work: the demo, the command eval, and what both measure and show."""
