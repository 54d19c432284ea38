"""One call of a guided pipeline: its arguments, its defaults, and the pipeline.py that diffusers loads."""
