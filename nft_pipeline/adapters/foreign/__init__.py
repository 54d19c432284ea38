"""Checkpoints that other tools wrote: where their files are, what their layers are called, and their scales."""
