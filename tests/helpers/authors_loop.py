"""The training loop of DiffusionNFT's authors in plain torch, for one process, written from reading their code.

Theirs is scripts/train_nft_sd3.py of https://github.com/NVlabs/DiffusionNFT with flow_grpo/diffusers_patch/solver.py,
flow_grpo/stat_tracking.py and flow_grpo/ema.py. Nothing of `nft_pipeline` is called here. What they draw from global
random numbers is given by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

TARGETS = [f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")]
TARGETS += [f"attn.add_{name}_proj" for name in "qkv"]


@dataclass(frozen=True)
class Given:
    """Their numbers, and what is random.

    Args:
        prompts_of: the prompt of each picture of an epoch, by place in `texts`.
        noise_of: the first noise of an epoch's pictures.
        orders_of: for an epoch and its pictures and levels: in which order the pictures come, (n,), and the levels of
            each of them, (n, levels).
        eps: the noise of a gradient step, in the order of its pictures and then of its levels: (n, levels, ...).
        start: the LoRA's first weights, A and B of each layer in turn.
    """

    texts: list[str]
    rewards: dict[Callable[..., Any], float]
    prompts_of: Callable[[int], list[int]]
    noise_of: Callable[[int], Tensor]
    orders_of: Callable[[int, int, int], tuple[Tensor, Tensor]]
    eps: Callable[[tuple[int, ...]], Tensor]
    start: list[Tensor]
    rank: int = 4
    epochs: int = 10
    gradient_steps: int = 2
    batch: int = 4
    steps: int = 5
    beta: float = 1.0
    lr: float = 3e-4
    weight_decay: float = 1e-4
    tokens: int = 4


@dataclass(frozen=True)
class Reached:
    """After a gradient step: its mean loss, and the weights of the trained, the old and the averaged LoRA."""

    loss: float
    theta: list[Tensor]
    old: list[Tensor]
    average: list[Tensor]


def loop(pipe: Any, given: Given) -> Iterator[Reached]:
    """Every gradient step; `old` is as it was during the step."""
    config = LoraConfig(
        r=given.rank,
        lora_alpha=2 * given.rank,
        init_lora_weights="gaussian",
        target_modules=TARGETS,
    )
    model = get_peft_model(pipe.transformer, config)
    model.add_adapter("old", config)
    model.set_adapter("old")
    old = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.set_adapter("default")
    theta = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for one, other, first in zip(old, theta, given.start, strict=True):
            other.copy_(first)
            one.copy_(other)
    average = [parameter.detach().clone() for parameter in theta]
    optimizer = torch.optim.AdamW(theta, lr=given.lr, betas=(0.9, 0.999), weight_decay=given.weight_decay, eps=1e-8)
    step = 0
    with torch.no_grad():
        encoded = [
            pipe.encode_prompt(text, None, None, do_classifier_free_guidance=False, max_sequence_length=given.tokens)
            for text in given.texts
        ]
    all_texts, all_pooled = torch.cat([one[0] for one in encoded]), torch.cat([one[2] for one in encoded])

    def velocity(x: Tensor, timestep: Tensor, rows: Tensor) -> Tensor:
        return model(
            hidden_states=x,
            timestep=timestep,
            encoder_hidden_states=all_texts[rows],
            pooled_projections=all_pooled[rows],
            return_dict=False,
        )[0]

    for epoch in range(given.epochs):
        prompt, noise = torch.tensor(given.prompts_of(epoch)), given.noise_of(epoch)
        model.set_adapter("old")
        clean, scores = [], []
        for rows in torch.arange(len(prompt)).split(given.batch):
            with torch.no_grad():
                x = dpm2(pipe.scheduler, given.steps, noise[rows], lambda x, t, at=prompt[rows]: velocity(x, t, at))
                image = pipe.vae.decode(x / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor)[0]
            image = ((image / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            clean.append(x)
            scores.append(sum(weight * np.asarray(reward(image)) for reward, weight in given.rewards.items()))
        model.set_adapter("default")
        x_0, timesteps = torch.cat(clean), pipe.scheduler.timesteps.clone()
        advantage = advantages([given.texts[i] for i in prompt.tolist()], np.concatenate(scores))

        used = int(given.steps * 0.99)
        picture, level = given.orders_of(epoch, len(prompt), given.steps)
        micro = torch.arange(len(prompt)).split(given.batch)
        accumulated = len(micro) // given.gradient_steps
        for number in range(given.gradient_steps):
            mine = micro[number * accumulated : (number + 1) * accumulated]
            eps = given.eps((accumulated * given.batch, used, *x_0.shape[1:]))
            losses = []
            for part, places in enumerate(mine):
                rows = picture[places]
                for j in range(used):
                    timestep = timesteps[level[places, j]]
                    here = eps[part * given.batch : (part + 1) * given.batch, j]
                    t = (timestep / 1000).view(-1, 1, 1, 1)
                    x_t = (1 - t) * x_0[rows] + t * here
                    model.set_adapter("old")
                    with torch.no_grad():
                        v_old = velocity(x_t, timestep, prompt[rows])
                    model.set_adapter("default")
                    v = velocity(x_t, timestep, prompt[rows])
                    with torch.no_grad(), model.disable_adapter():
                        v_ref = velocity(x_t, timestep, prompt[rows])
                    model.set_adapter("default")
                    loss = nft_loss(v, v_old, v_ref, x_t, x_0[rows], t, advantage[rows], given.beta)
                    (loss / (accumulated * used)).backward()
                    losses.append(loss.item())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            with torch.no_grad():
                keep = min((1 + step) / (10 + step), 0.9)
                for mean, parameter in zip(average, theta, strict=True):
                    mean.add_((1 - keep) * (parameter - mean))
            copies = [[tensor.detach().clone() for tensor in tensors] for tensors in (theta, old, average)]
            yield Reached(float(np.mean(losses)), *copies)
        with torch.no_grad():
            decay = min(0.001 * step, 0.5)
            for one, other in zip(old, theta, strict=True):
                one.copy_(decay * one + (1 - decay) * other)


def dpm2(scheduler: Any, steps: int, x: Tensor, velocity: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Their deterministic solver, of order 2, over the scheduler's sigmas."""
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.float()
    before = None
    for i in range(steps):
        timestep = torch.full((len(x),), float(sigmas[i] * 1000), dtype=torch.float32).long()
        x_0 = x - sigmas[i] * velocity(x, timestep)
        s, following = sigmas[i].double(), sigmas[i + 1].double()
        if i in (0, steps - 1):
            noise = (x - (1 - s) * x_0) / s
            x = (1 - following) * x_0 + following * noise
        else:
            half_log_snr = [torch.log(1 - sigma) - torch.log(sigma) for sigma in sigmas[i - 1 : i + 2].double()]
            h, h_before = half_log_snr[2] - half_log_snr[1], half_log_snr[1] - half_log_snr[0]
            slope = (1 / (h_before / h)) * (x_0 - before)
            factor = (1 - following) * (torch.exp(-h) - 1)
            x = (following / s) * x - factor * x_0 - 0.5 * factor * slope
        before = x_0
    return x


def advantages(texts: list[str], rewards: np.ndarray) -> Tensor:
    """Less the mean of the text's, over the standard deviation of all."""
    texts_of = np.array(texts)
    centred = np.empty(len(rewards))
    for text in set(texts):
        centred[texts_of == text] = rewards[texts_of == text] - rewards[texts_of == text].mean()
    return torch.from_numpy(centred / (rewards.std() + 1e-4))


def nft_loss(
    v: Tensor, v_old: Tensor, v_ref: Tensor, x_t: Tensor, x_0: Tensor, t: Tensor, advantage: Tensor, beta: float
) -> Tensor:
    """The mean over pictures of their policy loss and of the pull to the reference model."""
    r = (advantage.clamp(-5, 5) / 5 / 2 + 0.5).clamp(0, 1)
    plus = beta * v + (1 - beta) * v_old
    minus = (1 + beta) * v_old - beta * v

    def branch(velocity: Tensor) -> Tensor:
        error = (x_t - t * velocity) - x_0
        weight = error.detach().double().abs().mean((1, 2, 3), keepdim=True).clip(min=1e-5)
        return (error**2 / weight).mean((1, 2, 3))

    policy = r * branch(plus) / beta + (1 - r) * branch(minus) / beta
    return (policy * 5).mean() + 1e-4 * ((v - v_ref) ** 2).mean((1, 2, 3)).mean()
