"""What several tests share."""

from nft_pipeline.torchvision_repair import watch

watch()  # before diffusers and transformers, which import torchvision where it is installed
