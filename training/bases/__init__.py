"""Base models as the trainer sees them, one file for each family."""
