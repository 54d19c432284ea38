"""Guidance at work on a denoiser: hooks, LoRA switches, and what each forward of a step is for."""
