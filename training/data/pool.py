"""The pool: scored pictures, kept as latents and conditions.

Training never runs a text encoder, the VAE or the reward again. If the pool comes from the base model itself,
E[y | x_t] over the pool is what the base model predicts, as M1 to M3 (docs/theory.md) assume. A pool that was asked for
in other words than it is learned under departs from that for the sake of clearer examples; a calibration then measures
what the adapter does.

Pictures of different sizes are in different buckets, one per size. A batch is drawn from one bucket.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nft_pipeline.errors import AdapterError
from nft_pipeline.files.atomic import atomic_write_bytes
from nft_pipeline.files.strict import header_texts, read_beginning, read_safetensors, safetensors_bytes
from nft_pipeline.files.versions import VERSION_KEY, Format, VersionError

from ..bases.base import Conditions, TrainBase, rows_of
from ..devices.memory import memory_advice
from ..rewards.contract import RewardError
from ..rewards.find import Scorer
from ..settings import stored
from ..settings.choices import Method, Mix
from ..settings.sampling import PROMPT_PLACE
from .optimality import Optimality, by_prompt, optimality
from .parts import Parts

FORMAT = Format(version=1)
HASH_KEY = "sha256"  # of the tensors, in the header; the first files have none
NAMES_KEY = "tensors"  # what they are called, which the hash does not cover


class PoolError(ValueError):
    """A pool that cannot be used for training."""


@dataclass(frozen=True)
class Pool:
    """Scored pictures.

    Args:
        buckets: scaled latents x_0, float16, one (n, C, h, w) per size of picture.
        bucket: each sample's bucket, int64, shape (N,).
        place: each sample's row in its bucket, int64, shape (N,).
        prompt: the index of each sample's prompt, int64, shape (N,).
        conditions: what `TrainBase.encode_prompts` made of the prompts, (P, ...).
        r: scores in [0, 1], float32, shape (N,).
    """

    buckets: tuple[Tensor, ...]
    bucket: Tensor
    place: Tensor
    prompt: Tensor
    conditions: Conditions
    r: Tensor

    @classmethod
    def of(cls, latents: Tensor, prompt: Tensor, conditions: Conditions, r: Tensor) -> Pool:
        """A pool of pictures of one size, latents (N, C, h, w)."""
        n = len(latents)
        return cls((latents,), torch.zeros(n, dtype=torch.int64), torch.arange(n), prompt, conditions, r.float())

    def __len__(self) -> int:
        return len(self.r)

    def x_0(self, rows: Tensor) -> Tensor:
        """Latents of samples of one bucket, float32, (B, C, h, w)."""
        return self.buckets[int(self.bucket[rows[0]])][self.place[rows]].float()

    def conditions_of(self, rows: Tensor) -> Conditions:
        """The conditions of samples."""
        return rows_of(self.conditions, self.prompt[rows])

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield every sample once, in order, in batches of at most `size` from one bucket."""
        for number in self.bucket.unique().tolist():
            yield from (self.bucket == number).nonzero().squeeze(1).split(size)

    def draw(self, n: int, generator: torch.Generator, weight: Tensor | None = None) -> Tensor:
        """`n` samples of one bucket: with replacement in proportion to `weight` (N,), or equally often without it."""
        inside = None
        if len(self.buckets) > 1:
            mass = torch.ones(len(self)) if weight is None else weight
            share = torch.zeros(len(self.buckets)).index_add_(0, self.bucket, mass)
            chosen = int(torch.multinomial(share, 1, generator=generator))
            inside = (self.bucket == chosen).nonzero().squeeze(1)
        if weight is not None:
            picked = torch.multinomial(weight if inside is None else weight[inside], n, True, generator=generator)
        else:  # whole rounds through the samples, then some of them once
            size = len(self) if inside is None else len(inside)
            picked = torch.cat([torch.randperm(size, generator=generator) for _ in range(-(-n // size))])[:n]
        return picked if inside is None else inside[picked]

    def rows(self, index: Tensor) -> Pool:
        """The pool of some of the samples, given by their places or by a mask."""
        parts = {name: getattr(self, name)[index] for name in ("bucket", "place", "prompt", "r")}
        return replace(self, **parts)

    def tensors(self) -> dict[str, Tensor]:
        """All of the pool's tensors by name, for `from_tensors`."""
        return {
            **{f"buckets.{i}": latents for i, latents in enumerate(self.buckets)},
            **{f"conditions.{name}": value for name, value in self.conditions.items()},
            **{name: getattr(self, name) for name in ("bucket", "place", "prompt", "r")},
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Pool:
        """The pool of which `tensors` returned the tensors."""
        parts: dict[str, dict[str, Tensor]] = {"buckets": {}, "conditions": {}}
        plain = {}
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            if kind in parts:
                parts[kind][name] = value
            else:
                plain[key] = value
        buckets = tuple(parts["buckets"][str(i)] for i in range(len(parts["buckets"])))
        return cls(buckets=buckets, conditions=parts["conditions"], **plain)


def sample_pool(
    base: TrainBase,
    prompts: Sequence[str],
    rewards: Mapping[str, Scorer],
    method: Method = "raw",
    *,
    size: int,
    seed: int,
    batch: int,
    weights: Mapping[str, float] | None = None,
    at: float | None = None,
    mix: Mix = "mean",
    label: str = "pool",
    wordings: Sequence[str] = (),
    empty: Conditions | None = None,
    parts: Parts | None = None,
    identity: Callable[[str], str] = str,
    stop: Callable[[], None] = lambda: None,
) -> tuple[Pool, Optimality]:
    """Sample `size` pictures, each prompt about equally often, and score them; those without a score are left out.

    Args:
        base: the base model, with text encoders and VAE.
        rewards: the rewards by name.
        method, weights, at, mix: as in `optimality`.
        wordings: how the pictures are asked for, in turn; none asks for the prompts themselves.
        empty: conditions of the empty prompt, needed with classifier-free guidance.
        parts: where each batch is kept as soon as it is drawn, and again when it is scored; what is there is not made
            again. None keeps nothing.
        identity: by a reward's name, what its scores are kept under.
        stop: called before each batch; may raise.

    Raises:
        RewardError, OptimalityError: scores that cannot be used.
    """
    prompts = prompts[:size]  # no more are drawn
    conditions = base.encode_prompts(prompts)
    prompt = torch.arange(size) % len(prompts)
    wordings = wordings or (PROMPT_PLACE,)
    wording = wording_of(size, len(prompts), len(wordings))
    noise = torch.randn(base.latent_shape(size), generator=torch.Generator().manual_seed(seed))
    latents, left = torch.zeros(noise.shape, dtype=torch.float16), torch.ones(size, dtype=torch.bool)
    scores = {name: np.full(size, np.nan) for name in rewards}

    def asked_for(text: str, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """A function that draws some of these rows in one wording. It holds the conditions of that wording alone."""
        used, asked = torch.arange(len(prompts)), conditions
        if text != PROMPT_PLACE:
            used = prompt[rows].unique()
            asked = base.encode_prompts([text.replace(PROMPT_PLACE, prompts[i]) for i in used.tolist()])

        def draw(some: Tensor) -> Tensor:
            stop()
            return base.sample_batch(rows_of(asked, torch.searchsorted(used, prompt[some])), noise[some], empty)

        return draw

    def take(part: dict[str, Tensor]) -> None:
        """A part with the scores that it has still to get."""
        rows = part["rows"]
        lacking = {name: reward for name, reward in rewards.items() if _scores_key(identity(name)) not in part}
        if lacking:
            pictures, texts = base.decode_latents(part["latents"]), [prompts[i] for i in prompt[rows].tolist()]
            for name, reward in lacking.items():
                part[_scores_key(identity(name))] = torch.from_numpy(score(reward, name, pictures, texts))
            if parts is not None:
                parts.keep(part)
        latents[rows], left[rows] = part["latents"].half(), False
        for name in rewards:
            scores[name][rows.numpy()] = part[_scores_key(identity(name))].numpy()
        bar.update(len(rows))

    with tqdm(total=size, desc=f"{label}: drawing and scoring", unit="picture") as bar:
        for part in [] if parts is None else parts.kept():
            stop()
            # Missing scores may come from a reward that has been mended since.
            take({key: value for key, value in part.items() if not (_is_scores(key) and value.isnan().any())})
        for place, text in enumerate(wordings):
            still = (left & (wording == place)).nonzero().squeeze(1)
            if not len(still):
                continue
            for rows, drawn in base.fits.parts("drawing", still, batch, asked_for(text, still)):
                part = {"rows": rows, "latents": drawn}
                if parts is not None:
                    parts.keep(part)  # before a reward can fail
                take(part)
    found = optimality(scores, method, weights=weights, groups=by_prompt(prompt.numpy()), at=at, mix=mix)
    kept = torch.from_numpy(found.kept)
    return Pool.of(latents[kept], prompt[kept], conditions, torch.from_numpy(found.r[found.kept])), found


def wording_of(size: int, prompts: int, wordings: int) -> Tensor:
    """Which wording each of `size` pictures is asked for in, int64, (size,); they take the prompts in turn.

    Each round through the prompts gives a prompt its next wording, and neighbours in a round have different ones, so
    that all wordings are about equally often asked for however many rounds there are.
    """
    number = torch.arange(size)
    return (number % prompts + number // prompts) % wordings


def _scores_key(identity: str) -> str:
    return f"scores.{identity}"


def _is_scores(key: str) -> bool:
    return key.startswith("scores.")


def score(reward: Scorer, name: str, pictures: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """A reward's scores of pictures, (B,), NaN where it has none.

    Raises:
        RewardError: another number of scores than pictures.
    """
    with memory_advice("scoring"):
        scores = np.asarray(reward(pictures, prompts), dtype=np.float64)
    if scores.shape != (len(pictures),):
        raise RewardError(
            f"reward {name!r} gave scores of shape {scores.shape} for {len(pictures)} pictures, expected "
            f"({len(pictures)},), one each"
        )
    return scores


def check_pool(pool: Pool, name: str) -> None:
    """Check that a reward can be learned from this pool.

    Raises:
        PoolError: every sample has the same score, or hardly any is good or bad.
    """
    mean, spread = pool.r.mean().item(), pool.r.std().item()
    enough = 0.01 <= mean <= 0.99 and spread > 1e-3
    if not enough:
        raise PoolError(
            f"reward {name!r} averages {mean:.4f} with spread {spread:.4f} over {len(pool)} samples of the base model; "
            "expected an average from 0.01 to 0.99. Where everything is good or everything is bad there is nothing to "
            "learn: choose other prompts, or a reward that tells the base model's samples apart"
        )


def pool_key(made_with: Mapping[str, Any]) -> str:
    """All that a pool depends on, as a JSON text for the header of its file; see `load_pool`.

    Args:
        made_with: plain values by name. Under "settings" may stand a run's whole settings, of which those that cost or
            show something are left out. An entry that a later version adds must be left out where it has the value
            that versions without it used, or every older pool counts as one of other settings.
    """
    facts = _digests({name: value for name, value in made_with.items() if name != "settings"})
    if "settings" in made_with:
        facts["settings"] = _digests(stored.that_matter(made_with["settings"]))
    return json.dumps({"made_with": facts, "hash": _first_hash(made_with)}, sort_keys=True)


def save_pool(pool: Pool, path: Path, key: str) -> None:
    """Write a pool to one safetensors file, whole or not at all."""
    tensors = {name: value.contiguous() for name, value in pool.tensors().items()}
    header = {"pool_key": key, NAMES_KEY: " ".join(sorted(tensors)), VERSION_KEY: str(FORMAT.version)}
    atomic_write_bytes(path, safetensors_bytes(tensors, header, HASH_KEY))


def load_pool(path: Path, key: str, say: Callable[[str], None] = lambda line: None) -> Pool | None:
    """The pool in `path` if it was made with the same settings; None if there is none to use: it is to be made then.

    There is none to use if the file is missing, belongs to other settings, or is damaged. Settings that the file lacks
    count as their defaults: its version did not have them yet. The first files hold 16 hex digits in place of the
    settings, which are compared with those that the same settings gave then.

    Args:
        path: the pool's file.
        key: what `pool_key` makes of the settings.
        say: called with a line that names a damaged file and what is wrong with it.

    Raises:
        PoolError: the file is of a newer version.
    """
    if not path.is_file():
        return None
    try:
        header = header_texts(read_beginning(path), path.name)
        FORMAT.migrated({VERSION_KEY: int(header.get(VERSION_KEY, 1))})
        if not _same_pool(header.get("pool_key", ""), key):
            return None
        file = read_safetensors(path, path.name, path.stat().st_size, HASH_KEY)
        if file.hash_fault:
            raise AdapterError(file.hash_fault)
        if header.get(NAMES_KEY, names := " ".join(sorted(file.tensors))) != names:
            raise AdapterError(f"its tensors are {names}, expected {header[NAMES_KEY]}")
        return Pool.from_tensors(file.tensors)
    except VersionError as error:
        raise PoolError(f"{path} cannot be used here: {error}. Or delete it; the run will sample a new one") from error
    except (AdapterError, OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        say(f"warning: {path} cannot be read as a pool: {error}. It is made again")
        return None


def _same_pool(in_file: str, wanted: str) -> bool:
    """Whether two keys stand for the same pool: one out of a file of any version, one of today."""
    if in_file == wanted or not wanted.startswith("{"):
        return in_file == wanted
    if not in_file.startswith("{"):
        return bool(in_file) and in_file == json.loads(wanted)["hash"]
    # How many are drawn at once changes a pool by rounding alone.
    facts, wanted_facts = ({**json.loads(key)["made_with"], "batch": None} for key in (in_file, wanted))
    if "settings" in facts:
        facts["settings"] = stored.that_matter(_digests(stored.default_settings()) | facts["settings"])
    return facts == wanted_facts


def _digests(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _digest(value) for name, value in values.items()}


def _digest(value: Any) -> Any:
    """The value as JSON gives it back; of a long one, such as thousands of prompts, its hash."""
    written = json.dumps(value, sort_keys=True)
    return json.loads(written) if len(written) <= 1000 else f"sha256:{hashlib.sha256(written.encode()).hexdigest()}"


def _first_hash(made_with: Mapping[str, Any]) -> str:
    """What the first files hold for these settings; "" if a setting that came later is not at its default."""
    facts = dict(made_with)
    if "settings" in facts:
        settings, defaults = facts["settings"], stored.default_settings()
        later = settings.keys() - stored.FIRST_SETTINGS
        if any(name not in defaults or settings[name] != defaults[name] for name in later):
            return ""
        facts["settings"] = {name: value for name, value in settings.items() if name in stored.FIRST_SETTINGS}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
