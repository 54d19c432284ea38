"""Forty likes: how many steps they are worth, cross-validation, doubts in words, and pictures drawn to be rated."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from helpers.tiny_run import SMALL, config, picture_folder, prompts, random_pool, save_tiny, tiny_base
from nft_pipeline.adapters.alpha_head import AlphaHead, AlphaHeadConfig
from nft_pipeline.cli import main
from nft_pipeline.files.picture_list import changing_rows, find_pictures, read_rows, update_rows
from nft_pipeline.training.data.drawn import draw_folder
from nft_pipeline.training.data.settled import LEAST_STEPS, settled
from nft_pipeline.training.dial import useful
from nft_pipeline.training.learn.calibration import Calibration
from nft_pipeline.training.learn.early import EarlyStop, held_out_loss
from nft_pipeline.training.learn.folds import COUNT, Folds, folds_of
from nft_pipeline.training.learn.learner import Learner
from nft_pipeline.training.run import trainer
from nft_pipeline.training.settings.config import TrainConfig
from nft_pipeline.training.show.doubts import doubts, is_at_chance

LIKES = {key: value for key, value in SMALL.items() if key not in ("reward", "prompts", "optimality")}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


def test_folds_are_equal_and_each_has_its_share_of_likes():
    r = torch.tensor([1.0] * 9 + [0.0] * 31)
    fold = folds_of(r)
    assert torch.bincount(fold).tolist() == [8] * COUNT
    assert sorted(torch.bincount(fold[r == 1], minlength=COUNT).tolist()) == [1, 2, 2, 2, 2]
    assert torch.equal(fold, folds_of(r))


def test_a_head_learns_nothing_from_its_own_fold():
    fold = folds_of(torch.rand(20, generator=torch.Generator().manual_seed(0)))
    before = torch.get_rng_state()
    config = TrainConfig.from_mapping(SMALL)
    folds = Folds(fold, lambda: AlphaHead(AlphaHeadConfig(feature_dim=8, width=8, queries=1, layers=1)), config)
    assert torch.equal(torch.get_rng_state(), before)  # a run without folds learns the same
    own = (fold == 2).nonzero().squeeze(1)
    tokens, t = torch.randn(len(own), 4, 8), torch.full((len(own),), 0.5)
    learned, left_out = folds.losses(own, torch.ones(len(own)), lambda head: head(tokens, t, None, None))
    learned.backward()
    moved = [any(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters()) for head in folds.heads]
    assert moved == [True, True, False, True, True] and left_out > 0


def test_a_folder_is_cross_validated_and_its_doubts_are_said(model, tmp_path):
    data = picture_folder(tmp_path / "data")
    lines: list[str] = []
    settings = {**LIKES, "base_model": model, "data": str(data), "made_by_base": True, "checkpoint_every": 1}
    result = trainer.train(TrainConfig.from_mapping(settings), tmp_path / "run", say=lines.append, device="cpu")
    said = "\n".join(lines)
    assert "cross-validated, by 5 heads that each leave a part of the pictures out" in said
    assert all(entry.n == 48 for entry in result.calibration)  # two noises of every picture
    rows = [json.loads(line) for line in (tmp_path / "run" / "losses.jsonl").read_text().splitlines()]
    assert all(row["alpha held out"] > 0 for row in rows)
    assert "warning: Only 12 of 24 pictures are liked. With fewer than 20" in said
    assert "A doubt." in (tmp_path / "run" / "report.html").read_text()


def test_pictures_that_all_name_the_base_model_were_made_by_it(model, tmp_path):
    config = TrainConfig.from_mapping({**LIKES, "base_model": model, "data": str(tmp_path / "data")})
    assert settled(config) == config  # there is no folder yet
    picture_folder(tmp_path / "data", model=model)
    assert settled(config).kind == "positive" and config.kind == "policy"
    line = {"image": "0.png", "prompt": "a cat", "liked": True, "model": "another"}
    with (tmp_path / "data" / "metadata.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert settled(config).kind == "policy"


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"adapter": "mine", "strength": 0.0}, "positive"),
        ({"adapter": "mine", "strength": 1.0}, "policy"),
        ({"adapter": "mine", "strength": -0.5}, "policy"),
        ({"model": ["not", "a name"]}, "policy"),
        ({"model": None}, "policy"),
    ],
    ids=str,
)
def test_pictures_that_an_adapter_guided_were_not_made_by_the_base_model(model, tmp_path, more, kind):
    """`play` keeps pictures of any strength with the name of the model below."""
    config = TrainConfig.from_mapping({**LIKES, "base_model": model, "data": str(tmp_path / "data")})
    picture_folder(tmp_path / "data", **{"model": model, **more})
    assert settled(config).kind == kind


@pytest.mark.parametrize(
    ("steps", "passes", "batch", "expected"),
    [(256, None, 4, 256), (256, 20, 4, 120), (256, 1, 4, LEAST_STEPS), (9, 20, 4, 9)],
)
def test_few_pictures_get_few_steps(tmp_path, steps, passes, batch, expected):
    picture_folder(tmp_path / "data")
    settings = {**LIKES, "data": str(tmp_path / "data"), "steps": steps, "passes": passes, "batch": batch}
    assert settled(TrainConfig.from_mapping(settings)).steps == expected


def at(auc: float, n: int = 80) -> Calibration:
    return Calibration(0.5, n, auc, 0.3, 0.3, 0.1, ())


def test_chance_is_what_so_few_pictures_cannot_be_told_from():
    assert is_at_chance([at(0.6), at(0.71)], 9, 31) and not is_at_chance([at(0.6), at(0.73)], 9, 31)
    assert not is_at_chance([at(0.6)], 100, 100) and not is_at_chance([], 9, 31)
    assert not is_at_chance([at(math.nan)], 9, 31)


def test_doubts_name_what_is_wrong_and_how_many_more_ratings():
    r = torch.tensor([1.0] * 9 + [0.0] * 31)
    found = doubts(r, [at(0.55)], [{"alpha": 0.1, "alpha held out": 0.9}] * 30)
    few, chance, by_heart = found.words
    assert found.at_chance and found.more == 100 and "about 100 more ratings would help" in few
    assert "no better than chance (AUC 0.55 at best" in chance and "not learnable from these, try about 100" in chance
    assert "learned its pictures by heart: at its end alpha's loss is 0.10 on them and 0.90" in by_heart
    many = torch.tensor([1.0] * 200 + [0.0] * 220)
    fine = doubts(many, [at(0.8, 840)], [{"alpha": 0.4, "alpha held out": 0.5}])
    assert fine.words == () and not fine.at_chance and fine.more == 400


def test_a_run_that_gains_nothing_ends_with_its_best_weights():
    base = tiny_base()
    config = TrainConfig.from_mapping({**SMALL, "steps": 40, "stop_early": 2})
    learner, pool = Learner(base, base.encode_prompts(prompts()), config), random_pool(base)
    early = EarlyStop(learner, pool)
    assert early.every == 2 and not early.is_over
    losses, marks = [3.0, 2.0, 2.5, 2.6], []
    early.__class__.after_step.__globals__["held_out_loss"] = lambda learner, pool: losses.pop(0)
    try:
        for step in range(1, 9):
            learner.step_number = step
            learner.average = [torch.full_like(each, step) for each in learner.average]
            early.after_step({})
            marks.append(early.is_over)
    finally:
        early.__class__.after_step.__globals__["held_out_loss"] = held_out_loss
    assert marks == [False] * 7 + [True]
    again = EarlyStop(learner, pool)
    again.load_state_dict(early.state_dict())
    again.use_best()
    assert again.is_over and all(bool((each == 4).all()) for each in learner.average)
    assert held_out_loss(learner, pool) == pytest.approx(held_out_loss(learner, pool))


def test_the_base_model_draws_a_folder_to_rate_and_more_into_it(model, tmp_path, capsys):
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump({**SMALL, "base_model": model}))
    listed = tmp_path / "prompts.txt"
    listed.write_text("a cat\na dog\n")
    where = [str(tmp_path / "pictures"), "--prompts", str(listed), "--device", "cpu"]
    assert main(["draw", str(run), *where]) == 2 and "Importing it runs it" in capsys.readouterr().err
    command = ["draw", str(run), *where, "--trust", "--count"]
    assert main([*command, "3"]) == 0 and main([*command, "2"]) == 0
    assert "5 pictures in" in capsys.readouterr().out
    rows = read_rows(tmp_path / "pictures")
    assert [(row["seed"], row["prompt"]) for row in rows] == [(i, ("a cat", "a dog")[i % 2]) for i in range(5)]
    assert {row["model"] for row in rows} == {model}
    assert sorted(row["image"] for row in rows) == find_pictures(tmp_path / "pictures")


def test_drawing_again_keeps_rated_pictures_and_their_ratings(tmp_path):
    base, settings, folder = tiny_base(), config(), tmp_path / "pictures"

    def content():
        return {row["image"]: (folder / row["image"]).read_bytes() for row in read_rows(folder)}

    draw_folder(base, settings, ["a cat"], folder, 3)
    update_rows(folder, {row["image"]: {"liked": True} for row in read_rows(folder)})
    before = content()
    with changing_rows(folder) as rows:  # a person deletes the line of the first
        deleted = rows.pop(next(iter(rows)))
    assert draw_folder(base, settings, ["a dog"], folder, 2) == 4
    assert draw_folder(base, settings, ["a dog"], folder, 2, seed=1) == 6
    assert draw_folder(base, settings, ["a cat"], folder, 2, seed=1) == 6  # these are there already
    rows, after = read_rows(folder), content()
    assert [row["seed"] for row in rows] == [1, 2, 3, 4, 1, 2]
    assert [row.get("liked") for row in rows] == [True, True, None, None, None, None]
    assert all(after[name] == before[name] for name in before if name != deleted["image"])
    assert (folder / deleted["image"]).read_bytes() == before[deleted["image"]]


def test_what_alpha_is_least_sure_of_comes_first(tmp_path, monkeypatch):
    picture_folder(tmp_path / "data", 6)
    names = [f"{i}.png" for i in range(6)]
    alphas = np.array([0.89, 0.5, 0.1, 0.45, 0.99, 0.6])
    base = tiny_base()
    pipe = SimpleNamespace(nft_adapters={"mine": SimpleNamespace(head=object(), config=SimpleNamespace(name="mine"))})
    monkeypatch.setattr(useful, "draws_of", lambda *args: SimpleNamespace(base=base))
    met = []

    def read(draws, latents, places, level, noise):
        met.append(len(latents))
        start = 4 * ((len(met) - 1) // len(useful.LEVELS))
        return alphas[start : start + len(latents)]

    monkeypatch.setattr(useful, "read_noised", read)
    found = useful.most_useful_first(pipe, "mine", tmp_path / "data", names, dict.fromkeys(names, "a cat"), batch=4)
    assert found == ["1.png", "3.png", "5.png", "0.png", "2.png", "4.png"]
    pipe.nft_adapters["mine"].head = None
    with pytest.raises(ValueError, match="has no alpha head"):
        useful.most_useful_first(pipe, "mine", tmp_path / "data", names, dict.fromkeys(names, "a cat"))
