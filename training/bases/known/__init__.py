"""The families that can be trained, one file for each, with one class for each pipeline class.

A class says, beside its `pipeline_class`, what that pipeline does between a prompt, a latent and a noise level t and
the denoiser's forward (see `nft_pipeline.training.bases.base.TrainBase`). It is found by standing here.
"""
