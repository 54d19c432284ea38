"""`python -m nft_pipeline` is the `diffusion-nft` command."""

import sys

from nft_pipeline.cli import main

sys.exit(main())
