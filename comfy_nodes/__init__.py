"""Room of the ComfyUI nodes: reward guidance as a MODEL -> MODEL node will live here; there is none yet."""
