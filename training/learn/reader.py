"""What the alpha head reads in a forward of the denoiser, and what it says of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nft_pipeline.adapters.alpha_head import AlphaHead, AlphaHeadConfig
from nft_pipeline.families.forward_call import as_tokens, first_argument

from ..bases.base import Conditions, TrainBase
from ..settings.config import TrainConfig
from .batch import Batch
from .objective import States
from .roles import LoraRoles


class Reader:
    """The forwards of a learner whose image tokens its head reads.

    Attributes:
        base: the base model.
        config: the run's settings.
        roles: which LoRA is on.
        head: the alpha head; None without one.
    """

    base: TrainBase
    config: TrainConfig
    roles: LoraRoles
    head: AlphaHead | None

    @property
    def device(self) -> torch.device:
        """The run's device."""
        return self.base.device

    def head_config(self, conditions: Conditions) -> AlphaHeadConfig:
        """The sizes of a head for this base model."""
        one = {name: value[:1] for name, value in conditions.items()}
        self.roles.use("base")
        with torch.no_grad(), self._tapped() as seen:
            self.base.predict(torch.zeros(self.base.latent_shape(1)), torch.full((1,), 0.5), one)
        text_dim = None if self.base.family.text is None else self.base.text(one).shape[-1]
        return AlphaHeadConfig(
            feature_dim=as_tokens(seen[0]).shape[-1],
            text_dim=text_dim,
            width=self.config.head_width,
            queries=self.config.head_queries,
            layers=self.config.head_layers,
            tap=self.base.family.tap,
        )

    @contextmanager
    def _tapped(self) -> Iterator[list[Tensor]]:
        """Collects what the head reads in every forward within."""
        seen: list[Tensor] = []
        module = self.base.denoiser.get_submodule(self.base.family.tap)
        handle = module.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(first_argument(args, kwargs)), with_kwargs=True
        )
        try:
            yield seen
        finally:
            handle.remove()

    @torch.no_grad()
    def output_and_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The raw output of the role in use, and the tokens that the head reads in it."""
        with self._tapped() as seen:
            output = self.base.predict(batch.states.x_t, batch.states.t, batch.conditions)
        return output, as_tokens(seen[-1])

    def logit(
        self, batch: Batch, tokens: Tensor, lora_scale: Tensor | None = None, head: AlphaHead | None = None
    ) -> Tensor:
        """The head's logit of alpha, (B,), from tokens of a pass with the LoRA at this scale, (B,); None for off.

        `head` is another one than the learner's own.
        """
        head = head or self.head
        assert head is not None
        text = None if head.config.text_dim is None else self.base.text(batch.conditions).to(self.device)
        return head(tokens, batch.states.t.to(self.device), text, lora_scale)

    @torch.no_grad()
    def alpha(self, x_t: Tensor, t: Tensor, conditions: Conditions, head: AlphaHead | None = None) -> Tensor:
        """alpha(x_t, c, t) as inference reads it, from the base pass, `pool_batch` rows at once; (B,).

        `head` is another one than the learner's own.
        """
        self.roles.use("base")
        nothing = torch.empty(len(t))
        whole = Batch(States(x_t, x_t, x_t, t, nothing), conditions, torch.arange(len(t)), nothing, nothing, nothing)

        def read(rows: Tensor) -> Tensor:
            part = whole.take(rows)
            return torch.sigmoid(self.logit(part, self.output_and_tokens(part)[1], head=head))

        parts = self.base.fits.parts("reading alpha", torch.arange(len(t)), self.config.pool_batch, read)
        return torch.cat([alpha for _, alpha in parts])
