"""What a person with a GPU runs: `python -m tests.gpu`, from the repository's root. pytest finds nothing here."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for `helpers`, as pytest does

from nft_pipeline.torchvision_repair import watch

watch()  # before diffusers and transformers, which import torchvision where it is installed
