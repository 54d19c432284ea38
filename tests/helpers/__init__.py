"""What several tests share."""

import nft_pipeline  # noqa: F401  (before diffusers and transformers: it lets a mismatched torchvision be imported)
