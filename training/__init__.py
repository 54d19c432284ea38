"""The trainer: pool -> reward -> objective -> checkpoint -> adapter."""
