"""Room of the ComfyUI nodes: reward guidance as nodes that take a MODEL and give a MODEL.

Importing it loads nothing. `nodes`, `sheet`, `build`, `inputs` and `host` import ComfyUI, the others torch and
nft_pipeline's torch-only modules.
"""
