"""What an emoji picture shows, by a small classifier that was trained on the true pictures.

    judge = load_judge()                     # that of the shipped model
    shown = judge.look(pictures)             # one `Shown` for each picture: thing, style, background

`train_judge.py` makes it. Its own error is small but not nothing: docs/measured/emoji.md states it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from .contents import Contents, emoji_folder
from .pictures import SIZE, STYLES
from .world import BACKGROUNDS

FILE = "judge.safetensors"
SIGN = "sign"  # what a picture with a sign shows; it has no style
WIDTHS = (32, 64, 96, 128)


@dataclass(frozen=True)
class Shown:
    """What one picture shows.

    Args:
        thing: its name ("red apple"), or "sign".
        kind: what kind of thing that is ("food"), "sign" for a sign.
        style: a key of `pictures.STYLES`; that of a sign says nothing.
        background: a key of `world.BACKGROUNDS`.
        sure: how probable the judge calls the thing, in [0, 1].
    """

    thing: str
    kind: str
    style: str
    background: str
    sure: float


class Judge(nn.Module):
    """A convolutional network with one output for the thing and one for the style.

    The background is read from the picture's border: it is the nearest of the six colours.

    Args:
        names: of the things, "sign" among them.
        kinds: the kind of each.
    """

    def __init__(self, names: list[str], kinds: list[str]) -> None:
        super().__init__()
        self.names, self.kinds = names, kinds
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, padding=1)
        self.blocks = nn.ModuleList(_Block(a, b) for a, b in zip((WIDTHS[0], *WIDTHS[:-1]), WIDTHS, strict=True))
        self.thing = nn.Linear(WIDTHS[-1] * 4, len(names))
        self.style = nn.Linear(WIDTHS[-1] * 4, len(STYLES))

    @classmethod
    def of(cls, contents: Contents) -> Judge:
        """An untrained judge of what a model draws."""
        return cls([*contents.things, SIGN], [*contents.things.values(), SIGN])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the things (B, things) and of the styles (B, 3) for pictures in [-1, 1], (B, 3, 64, 64)."""
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        h = F.adaptive_avg_pool2d(F.silu(h), 2).flatten(1)
        return self.thing(h), self.style(h)

    @torch.no_grad()
    def look(self, pictures: np.ndarray, batch: int = 64) -> list[Shown]:
        """What each picture shows, uint8 (N, 64, 64, 3).

        Raises:
            ValueError: another shape or dtype.
        """
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[1:] != (SIZE, SIZE, 3):
            raise ValueError(f"pictures are {pictures.dtype} {pictures.shape}, expected uint8 (N, {SIZE}, {SIZE}, 3)")
        shown = []
        for part in np.array_split(pictures, max(1, -(-len(pictures) // batch))):
            things, styles = self(as_input(part))
            chances, best = things.softmax(-1).max(-1)
            for i, picture in enumerate(part):
                thing = int(best[i])
                style = list(STYLES)[int(styles[i].argmax())]
                shown.append(Shown(self.names[thing], self.kinds[thing], style, ground(picture), float(chances[i])))
        return shown


class _Block(nn.Module):
    """Two convolutions with a shortcut; half as many pixels per side come out."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, out)
        self.conv1 = nn.Conv2d(channels, out, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.short = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + self.short(F.avg_pool2d(x, 2))


def as_input(pictures: np.ndarray) -> Tensor:
    """Pictures, uint8 (N, 64, 64, 3), as the judge takes them: float32 (N, 3, 64, 64) in [-1, 1]."""
    return torch.tensor(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0  # a copy: PIL's arrays are read-only


def ground(picture: np.ndarray) -> str:
    """The background of a picture, uint8 (64, 64, 3): the nearest of the six colours to its border's median."""
    border = np.concatenate([picture[:3].reshape(-1, 3), picture[:, :3].reshape(-1, 3), picture[:, -3:].reshape(-1, 3)])
    colour = np.median(border.astype(np.float64), axis=0)
    return min(BACKGROUNDS, key=lambda name: float(np.linalg.norm(colour - np.array(BACKGROUNDS[name]))))


def save_judge(judge: Judge, folder: Path) -> None:
    """Write the weights, in half precision, into the folder of the emoji model."""
    save_file({key: tensor.half().contiguous() for key, tensor in judge.state_dict().items()}, folder / FILE)


@functools.cache
def load_judge(folder: Path | None = None) -> Judge:
    """The judge in the folder of an emoji model; by default of the shipped one."""
    home = emoji_folder() if folder is None else folder
    judge = Judge.of(Contents.read(home))
    judge.load_state_dict({key: tensor.float() for key, tensor in load_file(home / FILE).items()})
    return judge.eval()
