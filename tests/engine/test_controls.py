"""Schedule, guided rows, cap, several adapters, strength changed on the way: what each does to s and to pictures."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.tiny import counted_forwards, random_lora, sample, tiny_adapter, tiny_pipe
from nft_pipeline import guidance
from nft_pipeline.dial.tilts import tilts_of
from nft_pipeline.errors import GuidanceError
from nft_pipeline.guidance import combine_all, relative_push, total_push
from nft_pipeline.pipeline import DiffusionNFTPipeline
from nft_pipeline.settings import GuidanceSettings, schedule_value

CFG: dict[str, Any] = {"guidance_scale": 4.0, "negative_prompt": "a dog"}
ONE: dict[str, Any] = {"num_inference_steps": 1}


def guided_pipe(kind: str = "positive", **adapter: Any) -> Any:
    pipe = tiny_pipe()
    return DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, kind=kind, **adapter))


def policy(pipe: Any, seed: int) -> Any:
    return tiny_adapter(pipe.transformer, kind="policy", seed=seed)


@pytest.mark.parametrize(
    ("kind", "call", "weight"),
    [
        ("positive", {"nft_law": "nft", "nft_beta": 2e-6}, "1e\\+06"),
        ("policy", {"nft_strength": 1000.0}, "1000"),
        ("policy", {"nft_strength": [1.0, -500.0]}, "500"),
    ],
)
def test_a_dial_turned_a_thousandfold_is_warned_of(kind: str, call: dict[str, Any], weight: str) -> None:
    pipe = guided_pipe(kind)
    with pytest.warns(
        UserWarning, match=rf"puts its LoRA in at up to {weight} times its weight; pictures burn far below"
    ):
        sample(pipe, **call, **ONE, **({"prompt": ["a", "b"]} if isinstance(call.get("nft_strength"), list) else {}))


@pytest.mark.parametrize("call", [{"nft_strength": 20.0}, {"nft_law": "odds", "nft_strength": 1000.0}])
def test_a_dial_turned_far_is_ones_own_business(call: dict[str, Any]) -> None:
    pipe = guided_pipe("positive")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        sample(pipe, **call, **ONE)


# --- a schedule over noise level ---


def test_a_schedule_multiplies_the_tilt_at_each_noise_level() -> None:
    guided = guided_pipe(alpha=0.5)
    sample(guided, num_inference_steps=5, nft_law="nft")
    levels, full = guided.nft_stats.noise_level[:, 0], guided.nft_stats.scale[:, 0]
    sample(guided, num_inference_steps=5, nft_law="nft", nft_schedule=lambda t: t**2)
    torch.testing.assert_close(guided.nft_stats.scale[:, 0], full * levels**2)
    sample(guided, num_inference_steps=5, nft_law="nft", nft_schedule=[(0.9, 1.0), (0.5, 0.0)])
    expected = full * ((levels - 0.5) / 0.4).clamp(0, 1)
    torch.testing.assert_close(guided.nft_stats.scale[:, 0], expected, atol=1e-6, rtol=0)
    assert guided.nft_stats.passes.tolist() == [2 if s else 1 for s in expected.tolist()]


def test_a_schedule_and_the_odds_law_meet_in_the_tilt() -> None:
    guided = guided_pipe(alpha=0.5)
    sample(guided, nft_law="odds", nft_schedule=[(0.0, 0.25)])
    rho = math.expm1(0.25 * 2.0)
    torch.testing.assert_close(guided.nft_stats.scale, torch.full((3, 1), rho * 0.5 / (1 + rho * 0.5)))


@pytest.mark.parametrize(("t", "value"), [(0.0, 2.0), (0.2, 2.0), (0.5, 0.5), (0.35, 1.25), (0.9, 0.5)])
def test_a_curve_is_straight_between_its_points_and_level_beyond(t: float, value: float) -> None:
    assert schedule_value([(0.2, 2.0), (0.5, 0.5)], t) == pytest.approx(value)


# --- which rows under classifier-free guidance ---


def test_guiding_the_conditional_rows_only() -> None:
    """v_uncond + 4 (v_cond + s (v_lora_cond - v_cond) - v_uncond): the conditional row of `both`, its push times 4."""
    guided = guided_pipe(alpha=0.5, tilt=1.0)
    base = sample(guided, nft_strength=0, **CFG, **ONE)
    cond_only = sample(guided, nft_guide="cond", **CFG, **ONE)
    uncond_base = sample(guided, nft_strength=0, prompt="a dog", **ONE)
    uncond_both = sample(guided, prompt="a dog", **ONE)  # the unconditional row's own push, at the same alpha
    both = sample(guided, **CFG, **ONE)
    torch.testing.assert_close(both - base, (cond_only - base) - 3 * (uncond_both - uncond_base), atol=2e-5, rtol=0)
    assert (both - cond_only).abs().max() > 1e-3


def test_guiding_conditional_rows_runs_the_second_pass_on_them_alone() -> None:
    guided, rows = guided_pipe(), []
    hook = guided.transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["hidden_states"].shape[0]), with_kwargs=True
    )
    sample(guided, nft_guide="cond", num_images_per_prompt=2, **CFG, **ONE)
    hook.remove()
    assert rows == [4, 2]
    assert torch.equal(sample(guided, nft_guide="cond"), sample(guided)), "without CFG it is the same thing"


# --- a cap on the push ---


@pytest.mark.parametrize("call", [{}, CFG], ids=["cfg_free", "cfg"])
def test_a_cap_shortens_the_push_and_leaves_smaller_ones(call: dict) -> None:
    guided = guided_pipe(alpha=0.5, tilt=4.0)
    call = {**call, **ONE, "nft_law": "nft"}
    free = sample(guided, num_images_per_prompt=3, **call)
    base = sample(guided, nft_strength=0, num_images_per_prompt=3, **call)
    sample(guided, num_images_per_prompt=3, **call)
    push = guided.nft_stats.push[0]
    cap = push.sort().values[1:].mean().item()  # between the largest and the next
    capped = sample(guided, num_images_per_prompt=3, nft_cap=cap, **call)
    shorter = (cap / push).clamp(max=1)
    assert (shorter < 1).sum() == 1
    torch.testing.assert_close(capped - base, shorter.view(-1, 1, 1, 1) * (free - base), atol=1e-5, rtol=0)
    torch.testing.assert_close(guided.nft_stats.push[0], push.clamp(max=cap))
    torch.testing.assert_close(guided.nft_stats.scale[0], 2.0 * shorter)


@pytest.mark.parametrize("mode", ["two_pass", "batched"])
@pytest.mark.parametrize("call", [{}, CFG, {**CFG, "nft_guide": "cond"}], ids=["cfg_free", "cfg", "cond"])
def test_the_push_is_computed_once_a_step(mode: str, call: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    pushes: list[Tensor] = []
    monkeypatch.setattr(guidance, "total_push", lambda *args: pushes.append(total_push(*args)) or pushes[-1])
    guided = guided_pipe(alpha=0.5)
    sample(guided, num_inference_steps=3, nft_mode=mode, **call)
    assert len(pushes) == 3
    sample(guided, num_inference_steps=3, nft_mode=mode, nft_strength=0, **call)
    assert len(pushes) == 3


def test_push_is_the_same_in_every_parametrisation() -> None:
    """Outputs of one model told as flow, noise, VP velocity and picture; M9 gives the affine maps."""
    g = torch.Generator().manual_seed(0)
    x_0, eps, other = (torch.randn(5, 3, 4, generator=g, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.99], dtype=torch.float64).view(-1, 1, 1)
    n = torch.hypot(1 - t, t)
    flow_x, vp_x = (1 - t) * x_0 + t * eps, ((1 - t) * x_0 + t * eps) / n

    def told(picture: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        noise = (n * vp_x - (1 - t) * picture) / t
        velocity = ((1 - t) * noise - t * picture) / n
        flow = (flow_x - picture) / t
        return {"flow": (flow_x, flow), "epsilon": (vp_x, noise), "v": (vp_x, velocity), "sample": (vp_x, picture)}

    expected = (0.3 * (other - x_0)).flatten(1).norm(dim=1) / x_0.flatten(1).norm(dim=1)
    for prediction, (x_t, old) in told(x_0).items():
        push = 0.3 * (told(other)[prediction][1] - old)
        torch.testing.assert_close(relative_push(push, old, x_t, t.flatten(), prediction), expected)
        torch.testing.assert_close(relative_push(-push, -old, x_t, t.flatten(), prediction, sign=-1.0), expected)
    with pytest.raises(ValueError, match="unknown prediction 'x0'"):
        relative_push(x_0, x_0, x_0, 0.5, "x0")


# --- several adapters ---


def two_policies() -> Any:
    pipe = tiny_pipe()
    return DiffusionNFTPipeline.from_pipe(pipe, {"aesthetic": policy(pipe, 7), "text": policy(pipe, 8)})


def test_pushes_of_several_adapters_are_added() -> None:
    guided = two_policies()
    base = sample(guided, nft_strength=0, **ONE)
    pushes = {}
    for name in ("aesthetic", "text"):
        with counted_forwards(guided.transformer) as forwards:
            pushes[name] = sample(guided, nft_strength={name: 0.5}, **ONE) - base
        assert forwards == [2]
    with counted_forwards(guided.transformer) as forwards:
        both = sample(guided, nft_strength={"aesthetic": 1.0, "text": -0.5}, **ONE)
    assert forwards == [3]
    torch.testing.assert_close(both - base, 2 * pushes["aesthetic"] - pushes["text"], atol=1e-5, rtol=0)
    stats = guided.nft_stats
    assert stats.adapters == ("aesthetic", "text") and stats.scales[:, 0, 0].tolist() == [1.0, -0.5]
    with pytest.raises(ValueError, match=r"there were 2 adapters \(aesthetic, text\), expected one"):
        _ = stats.scale
    assert "scale aesthetic" in str(stats) and "scale text" in str(stats)
    torch.testing.assert_close(
        sample(guided, nft_strength=0.5, **ONE) - base, pushes["aesthetic"] + pushes["text"], atol=1e-5, rtol=0
    )


def test_each_of_several_heads_reads_the_base_pass() -> None:
    pipe = tiny_pipe()
    adapters = {"a": tiny_adapter(pipe.transformer), "b": tiny_adapter(pipe.transformer, seed=8, alpha=0.25)}
    alone = {}
    for name, adapter in adapters.items():
        guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
        sample(guided, **ONE)
        alone[name] = guided.nft_stats.alpha
        guided.unwrap()
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapters)
    sample(guided, **ONE)
    torch.testing.assert_close(guided.nft_stats.alphas, torch.stack([alone["a"], alone["b"]]))


def two_heads() -> Any:
    pipe = tiny_pipe()
    adapters = {"a": tiny_adapter(pipe.transformer), "b": tiny_adapter(pipe.transformer, seed=8, alpha=0.25)}
    for name, adapter in adapters.items():
        adapters[name] = dataclasses.replace(adapter, config=dataclasses.replace(adapter.config, base_rate=0.4))
    return DiffusionNFTPipeline.from_pipe(pipe, adapters)


def shared(stats: Any, alone: Tensor) -> Tensor:
    """The scales that "any" makes of those the adapters have alone, (2, steps, samples)."""
    weights = alone / (1 - alone)
    assert stats.adapters == ("a", "b")
    return weights / (1 + weights.sum(0))


@pytest.mark.parametrize("mode", ["two_pass", "batched"])
@pytest.mark.parametrize("strength", [1.5, {"a": 2.0, "b": -1.0}], ids=["both", "one_negative"])
def test_any_of_several_adapters_shares_one_denominator(mode: str, strength: Any) -> None:
    guided = two_heads()
    base = sample(guided, nft_strength=0, **ONE)
    added = sample(guided, nft_law="odds", nft_mode=mode, nft_strength=strength, **ONE)
    alone = guided.nft_stats.scales
    either = sample(guided, nft_law="odds", nft_mode=mode, nft_strength=strength, nft_combine="any", **ONE)
    torch.testing.assert_close(guided.nft_stats.scales, shared(guided.nft_stats, alone))
    assert not torch.equal(either, added)
    pushes = []
    for k, name in enumerate("ab"):
        one = sample(guided, nft_law="odds", nft_mode=mode, nft_strength={name: 1.0}, nft_combine="any", **ONE) - base
        own = guided.nft_stats.scales[k, 0, 0]
        assert float(guided.nft_stats.scales[1 - k].abs().max()) == 0 and float(own) > 0
        pushes.append(one / own)
    now = shared(guided.nft_stats, alone)[:, 0, 0]
    torch.testing.assert_close(either - base, now[0] * pushes[0] + now[1] * pushes[1], atol=2e-5, rtol=0)


def test_any_in_one_pass_shares_it_too() -> None:
    guided = two_heads()
    both: dict[str, Any] = {"nft_law": "odds", "nft_mode": "single"}
    sample(guided, **both, **ONE)
    alone = guided.nft_stats.scales
    sample(guided, nft_combine="any", **both, **ONE)
    torch.testing.assert_close(guided.nft_stats.scales, shared(guided.nft_stats, alone))


def test_any_of_one_adapter_is_that_adapter() -> None:
    guided = guided_pipe()
    assert torch.equal(sample(guided, nft_law="odds", nft_combine="any"), sample(guided, nft_law="odds"))


def test_any_is_refused_where_it_has_no_law() -> None:
    guided = two_heads()
    for call, message in (
        (
            {"nft_law": "nft"},
            r'nft_combine="any" adds odds weights, and the scale of nft_law="nft" is none. Use nft_law="odds"',
        ),
        ({"nft_law": "odds", "nft_strength": -1.0}, "those of 'a' and 'b' are negative"),
    ):
        with counted_forwards(guided.transformer) as forwards, pytest.raises(GuidanceError, match=message):
            sample(guided, nft_combine="any", **call)
        assert forwards == [0]
    with pytest.raises(GuidanceError, match=r'nft_combine is \'anny\', expected one of .* Did you mean "any"\?'):
        sample(guided, nft_combine="anny")
    with pytest.raises(GuidanceError, match=r"'.*' is a policy adapter, whose scale is none. Leave it out"):
        sample(two_policies(), nft_combine="any")

    def turn(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe.set_nft_strength(-1.0)
        return tensors

    with pytest.raises(GuidanceError, match="takes one negative strength at most"):
        sample(guided, nft_law="odds", nft_combine="any", callback_on_step_end=turn)
    with pytest.raises(ValueError, match="more than one is negative for the same sample"):
        sample(guided, nft_law="odds", nft_combine="any", nft_schedule=lambda t: -1.0)


def test_adapters_come_and_go_by_name() -> None:
    guided = two_policies()
    pipe = guided._nft_stock
    expected = sample(guided, nft_strength={"text": 0.5})
    guided.load_nft_adapter(policy(pipe, 9), name="aesthetic")
    assert torch.equal(sample(guided, nft_strength={"text": 0.5}), expected)
    guided.unload_nft_adapter("aesthetic")
    torch.testing.assert_close(sample(guided, nft_strength=0.5), expected, atol=1e-6, rtol=0)
    assert list(guided.nft_adapters) == ["text"]
    with pytest.raises(GuidanceError, match="no adapter 'aesthetic' is loaded, loaded are 'text'"):
        guided.unload_nft_adapter("aesthetic")
    with pytest.raises(GuidanceError, match="the adapter's name is 'a b', expected letters, digits"):
        guided.load_nft_adapter(policy(pipe, 9), name="a b")
    assert torch.equal(sample(guided.unwrap()), sample(tiny_pipe()))


def test_one_config_of_several_adapters() -> None:
    with pytest.raises(GuidanceError, match=r"2 adapters are loaded \(aesthetic, text\), so there is no one config"):
        _ = two_policies().nft_config


def test_a_faulty_second_adapter_leaves_nothing_of_the_first() -> None:
    pipe = tiny_pipe()
    modules = dict(pipe.transformer.named_modules())
    faulty = dataclasses.replace(policy(pipe, 8), lora={"transformer.nothing.lora_A.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="nothing"):
        DiffusionNFTPipeline.from_pipe(pipe, {"a": policy(pipe, 7), "b": faulty})
    assert dict(pipe.transformer.named_modules()) == modules


def test_several_adapters_are_saved_beside_the_model(tmp_path: Any) -> None:
    guided = two_policies()
    guided.save_pretrained(tmp_path)
    assert sorted(path.name for path in (tmp_path / "nft_adapter").iterdir()) == ["aesthetic", "text"]
    again = DiffusionNFTPipeline.from_pretrained(
        tmp_path, {name: tmp_path / "nft_adapter" / name for name in ("aesthetic", "text")}
    )
    again.set_progress_bar_config(disable=True)
    call = {"nft_strength": {"aesthetic": 0.5, "text": 0.25}}
    torch.testing.assert_close(sample(again, **call), sample(guided, **call), atol=1e-5, rtol=0)


def test_a_sum_with_a_zero_term_is_the_base_only_where_all_are_zero() -> None:
    old = torch.tensor([[-0.0], [1.0], [math.inf]])
    loras = [torch.tensor([[5.0], [3.0], [1.0]]), torch.tensor([[7.0], [5.0], [1.0]])]
    scales = [torch.tensor([0.0, 0.5, 0.0]), torch.tensor([0.0, 0.0, 0.0])]
    guided = combine_all(old, loras, scales)
    assert math.copysign(1, guided[0, 0]) == -1 and guided[1, 0] == 2.0 and guided[2, 0] == math.inf
    assert combine_all(old, loras, [0, 0.0]) is old
    torch.testing.assert_close(total_push(old[1:2], [lora[1:2] for lora in loras], [0.5, 2.0]), torch.tensor([[9.0]]))


# --- a LoRA of v_old ---


def test_a_lora_of_v_old_is_on_in_the_base_pass_and_off_in_the_other() -> None:
    pipe = tiny_pipe()
    adapter = policy(pipe, 7)
    adapter = dataclasses.replace(adapter, old=random_lora(pipe.transformer, seed=11))
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)

    def with_lora(lora: Any) -> Tensor:
        other = tiny_pipe()
        other.transformer.load_lora_adapter(dict(lora), prefix="transformer", adapter_name="x")
        return sample(other, **ONE)

    old, new = with_lora(adapter.old), with_lora(adapter.lora)
    assert (old - new).abs().max() > 1e-2
    for mode in ("two_pass", "batched"):
        call = {"nft_mode": mode, **ONE}
        torch.testing.assert_close(sample(guided, nft_strength=0, **call), old, atol=1e-5, rtol=0)
        torch.testing.assert_close(sample(guided, **call), new, atol=1e-5, rtol=0)
        torch.testing.assert_close(sample(guided, nft_strength=0.5, **call), (old + new) / 2, atol=1e-5, rtol=0)
    with pytest.raises(GuidanceError, match="a LoRA of v_old cannot be used with another one"):
        guided.load_nft_adapter(policy(pipe, 8), name="another")
    assert torch.equal(sample(guided.unwrap()), sample(tiny_pipe()))


def test_an_adapter_with_old_unloaded_behind_our_back_and_replaced_by_one_without() -> None:
    pipe = tiny_pipe()
    with_old = dataclasses.replace(policy(pipe, 7), old=random_lora(pipe.transformer, seed=11))
    guided = DiffusionNFTPipeline.from_pipe(pipe, policy(pipe, 8))
    expected = sample(guided)
    guided.unwrap()
    guided = DiffusionNFTPipeline.from_pipe(pipe, with_old)
    pipe.unload_lora_weights()
    guided.load_nft_adapter(policy(pipe, 8))
    torch.testing.assert_close(sample(guided), expected, atol=1e-5, rtol=0)


# --- strength changed on the way ---


def test_strength_changed_from_the_callback_holds_for_the_steps_that_follow() -> None:
    guided = guided_pipe(alpha=0.5)

    def change(pipe: Any, step: int, timestep: Any, inputs: dict) -> dict:
        pipe.set_nft_strength([0.0, -1.0, 0.5][step])
        return inputs

    sample(
        guided,
        num_inference_steps=4,
        nft_law="nft",
        callback_on_step_end=lambda p, i, t, k: change(p, i, t, k) if i < 3 else k,
    )
    assert guided.nft_stats.scale[:, 0].tolist() == [1.0, 0.0, -1.0, 0.5]
    assert guided.nft_stats.passes.tolist() == [2, 1, 2, 2]
    with pytest.raises(GuidanceError, match="set_nft_strength changes a call that is running, and none is"):
        guided.set_nft_strength(1.0)
    with pytest.raises(GuidanceError, match="nft_strength is nan, expected a finite number"):
        sample(guided, callback_on_step_end=lambda p, i, t, k: p.set_nft_strength(math.nan))


# --- errors ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nft_guide": "conditional"}, "nft_guide is 'conditional', expected one of 'both', 'cond'."),
        ({"nft_mode": "batch"}, "nft_mode is 'batch', expected one of 'two_pass', 'batched', 'single'. Did you mean"),
        ({"nft_cap": 0}, "nft_cap is 0, expected a number above 0"),
        ({"nft_cap": math.nan}, "nft_cap is nan, expected a number above 0"),
        ({"nft_cap": 0.5, "nft_mode": "single"}, 'nft_mode="single" never computes it'),
        ({"nft_mode": "single"}, "begins with the base rate stored in the adapter, and 'tiny' stores none"),
        ({"nft_schedule": 0.5}, "nft_schedule is 0.5, expected a callable t -> factor, or points (t, factor)"),
        ({"nft_schedule": []}, "nft_schedule is [], expected a callable"),
        ({"nft_schedule": [(0.1, 1.0), (0.1, 2.0)]}, "no t twice"),
        ({"nft_schedule": [(500, 1.0)]}, "with noise levels t in [0, 1]"),
        ({"nft_schedule": lambda t: math.nan}, "nft_schedule gave nan at noise level 1, expected a finite number"),
        ({"nft_strength": {"defualt": 1.0}}, "nft_strength names the adapter 'defualt', loaded are 'default'. Did you"),
        ({"nft_strength": {"default": 1.0}, "nft_beta": {"default": 1.0}}, "nft_strength=1.0 and nft_beta=1.0 were"),
        ({"nft_strength": {"default": "1"}}, "nft_strength is '1', expected a finite number"),
    ],
)
def test_bad_controls(arguments: dict, message: str) -> None:
    with pytest.raises(GuidanceError, match=re.escape(message)):
        sample(guided_pipe(), **arguments)


def test_strengths_and_betas_by_name() -> None:
    config = tiny_adapter(tiny_pipe().transformer, tilt=4.0).config
    configs = {"a": config, "b": config}
    assert tilts_of(configs) == {"a": 4.0, "b": 4.0}
    assert tilts_of(configs, 0.5) == {"a": 2.0, "b": 2.0}
    assert tilts_of(configs, {"b": -1.0}) == {"a": 0.0, "b": -4.0}
    assert tilts_of(configs, {"a": 0.5}, {"b": 0.5}) == {"a": 2.0, "b": 4.0}
    assert tilts_of(configs, beta={"b": 0.5}) == {"a": 0.0, "b": 4.0}


def test_settings_of_a_call_are_checked_against_all_adapters() -> None:
    pipe = tiny_pipe()
    configs = [tiny_adapter(pipe.transformer).config, policy(pipe, 8).config]
    with pytest.raises(GuidanceError, match="needs a positive adapter"):
        GuidanceSettings.of_call(configs, law="odds")
