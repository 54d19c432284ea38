"""One process of a run over several: trains, and process 0 writes the adapter.

    torchrun --nproc-per-node 2 tests/helpers/gloo_trainer.py settings.yaml out
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed

from nft_pipeline.training.config import TrainConfig
from nft_pipeline.training.trainer import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    train(TrainConfig.from_yaml(sys.argv[1]), Path(sys.argv[2]), device="cpu")
    if distributed.is_initialized():
        distributed.destroy_process_group()
