"""Speed, memory and every number the documents give; nothing here runs with the tests."""

from nft_pipeline.torchvision_repair import watch

watch()  # before diffusers and transformers, which import torchvision where it is installed
