"""`python -m nft_pipeline` is the `diffusion-nft` command."""

import sys

from .cli import main

sys.exit(main())
