"""The families of denoisers, one file for each, named after its models.

A file has `FAMILY`, the facts about one denoiser class of diffusers (see `nft_pipeline.families.family.Family`). It is
found by standing here: nothing else has to be edited. It imports torch at most, because ComfyUI reads it as well.
"""
