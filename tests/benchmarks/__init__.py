"""Speed, memory and every number the documents give; nothing here runs with the tests."""

import nft_pipeline  # noqa: F401  (before diffusers and transformers: it lets a mismatched torchvision be imported)
