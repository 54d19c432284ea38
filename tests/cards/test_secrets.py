"""Secrets of twelve kinds in every place a person may put them: none is in what others get to see."""

from __future__ import annotations

import copy
import io
import json
import pickle
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from helpers.cards import light_adapter, shared_adapter
from helpers.local_hub import LocalHub
from helpers.secret_rewards import MADE_WITH, reward_server
from helpers.tiny_run import SHOWN, SMALL, save_tiny
from nft_pipeline.adapter import AdapterError
from nft_pipeline.cli import main
from nft_pipeline.files.private import Secret, secrets_in, without_password, without_secrets
from nft_pipeline.hub_cards.push import push
from nft_pipeline.training.errors import ConfigError
from nft_pipeline.training.run.checkpoint import CheckpointError, check_settings
from nft_pipeline.training.settings.config import TrainConfig
from nft_pipeline.training.settings.public import public_settings

# Put together here, so that no file of this repository holds one.
SECRETS = {
    "a token of the Hub": "hf_" + "abcdefghijklmnopqrstuvwxyz",
    "an API key": "sk-" + "ant-api03-" + "a1b2c3d4" * 4,
    "a token of GitHub": "ghp_" + "a1" * 18,
    "a key of AWS": "AKIA" + "ABCDEFGH12345678",
    "a token of Slack": "xoxb-" + "1234567890-abcdef",
    "a password in an address": "https://anna:" + "hunter2hunter2@rewards.example.org/score",
    "a signed address": "https://x.blob.example.org/a?sv=1&sig=" + "Zm9vYmFyZm9vYmFy",
    "a signed address of AWS": "https://x.example.org/a?X-Amz-Signature=" + "0123456789abcdef" * 4,
    "a key by its name": "api_key=" + "0123456789" * 4,
    "a signed token": "eyJ" + "hbGciOiJIUzI1NiJ9." + "eyJ" + "zdWIiOiIxMjM0NTY3ODkwIn0." + "c2lnbmF0dXJl",
    "an e-mail address": "anna.b" + "@example.org",
    "a bearer token": "Bearer " + "abcdef0123456789abcdef",
}
OPAQUE = "f00dfeedf00dfeedf00dfeedf00dfeedf00dfeed"  # a key of W&B looks like a commit: only the allow-list holds it


def settings(secret: str) -> dict[str, Any]:
    return {
        "name": "tiny-red",
        "base_model": "someone/tiny",
        "licence": "apache-2.0",
        "reward_description": f"red, see {secret}",
        "prompts": f"prompts {secret}",
        "rewards": {
            f"remote:http://u:{OPAQUE}@10.1.2.3:9000": {"weight": 1.0, "token": secret, "timeout": 30.0},
            "mine:Reward": {"weight": 0.5, "anything": secret, "deep": {"er": [OPAQUE, secret]}},
            "vlm_judge": {"weight": 1.0, "model": "qwen", "template": f"say {secret} {{prompt}}", "key": OPAQUE},
        },
        "sample_prompts": [f"a ring {secret}"],
    }


@pytest.mark.parametrize("kind", SECRETS)
def test_no_secret_is_in_what_a_run_writes_for_others(kind: str) -> None:
    secret = SECRETS[kind]
    config = TrainConfig.from_mapping(settings(secret) | {"optimality": "rank"})
    public = public_settings(config.to_dict())
    text = json.dumps(public) + config.reward_name
    assert secret not in text and OPAQUE not in text and "10.1.2.3" not in text
    assert not secrets_in(text)
    assert public["rewards"]["remote"] == {"weight": 1.0, "token": "(left out)", "timeout": 30.0}
    assert public["rewards"]["vlm_judge"]["model"] == "qwen"
    assert public["base_model"] == "someone/tiny" and public.keys() == config.to_dict().keys()


@pytest.mark.parametrize("kind", SECRETS)
def test_no_secret_is_in_an_error(kind: str) -> None:
    secret = SECRETS[kind]
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_mapping(
            settings(secret) | {"rewards": {"mine:R": {"weight": "x", "token": secret}}, "lr": secret}
        )
    assert secret not in str(caught.value) and "lr is" in str(caught.value)
    whole = TrainConfig.from_mapping(settings(secret) | {"optimality": "rank"}).to_dict()
    with pytest.raises(CheckpointError) as differing:
        check_settings(Path("x"), {**whole, "rewards": {}, "lr": 0.5}, whole)
    assert secret not in str(differing.value) and OPAQUE not in str(differing.value)


@pytest.mark.parametrize("kind", SECRETS)
def test_the_second_line_refuses_to_push_what_came_another_way(kind: str, tmp_path: Path, hub: LocalHub) -> None:
    folder = shared_adapter(tmp_path / "a", light_adapter(training={"note": f"made with {SECRETS[kind]}"}))
    with pytest.raises(AdapterError, match="was not pushed; it has faults") as caught:
        push(folder, "someone/tiny-red", licence="apache-2.0", pause=0)
    assert SECRETS[kind] not in str(caught.value) and not hub.repos


def test_ordinary_settings_stay_as_they_are() -> None:
    text = (
        "tokens: 77, tokenizer: bert-base, https://huggingface.co/a/b?revision=main, seed 12345678, lr=0.0001, "
        "0123456789abcdef0123456789abcdef01234567, a ring @ home, key: value, sig. 5, http://127.0.0.1:8000/v1"
    )
    assert without_secrets(text) == text
    assert without_password("https://a:b@x.org:80/s?sig=1") == "https://x.org:80/s"


def test_a_dry_run_shows_every_text_that_would_be_public(tmp_path: Path, hub: LocalHub, capsys: Any) -> None:
    folder = shared_adapter(tmp_path / "a", light_adapter(training={"note": "my private words"}))
    assert main(["push", str(folder), "someone/tiny-red", "--licence", "apache-2.0", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for phrase in ("--- README.md", "--- nft_config.json", "my private words", "--- run_report.json", "feature_dim"):
        assert phrase in shown
    assert "modelspec.description: " in shown and "diffusion_nft: as in nft_config.json" in shown


def places(secrets: dict[str, str], server: str) -> dict[str, Any]:
    """A run's settings with a secret in every place that is not public by design, as prompts of samples are."""
    one = iter([*secrets.values()] * 2)
    return {
        **SMALL,
        **SHOWN,
        "name": "tiny",
        "base_model": "someone/tiny",
        "base_id": "someone/tiny",
        "reward": "",
        "reward_description": "bright; " + ", ".join(secrets.values()),
        "rewards": {
            f"remote:http://anna:{OPAQUE}@{server}": {"weight": 1.0, "token": next(one), "timeout": 30.0},
            "helpers.secret_rewards:Own": {
                "weight": 0.5,
                "api_key": OPAQUE,
                "anything": next(one),
                "deep": {"er": [next(one), OPAQUE]},
                "headers": {"X-Key": next(one), "Cookie": next(one)},
                "endpoint": next(one),
                "e_mail": next(one),
                "device": next(one),
            },
        },
        "prompts": f"prompts {secrets['a token of the Hub']}.txt",
        "held_out_prompts": f"prompts {secrets['a token of the Hub']}.txt",
        "trackers": ["wandb"],
        "sample_prompts": ["a cat"],
    }


def test_a_run_with_secrets_everywhere_publishes_none(
    tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    tracked: list[Any] = []
    wandb = types.ModuleType("wandb")
    wandb.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    run = types.SimpleNamespace(log=lambda values, step: tracked.append(values), finish=lambda: None)
    run.config = types.SimpleNamespace(update=lambda values, **_: tracked.append(values))
    wandb.init = lambda **given: tracked.append(given) or run  # type: ignore[attr-defined]
    wandb.config, wandb.Image = run.config, lambda picture: 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "someone" / "tiny")
    for variable in ("DIFFUSION_NFT_REWARD_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(variable, OPAQUE)
    Path(f"prompts {SECRETS['a token of the Hub']}.txt").write_text("a cat\na dog\na cow\n")
    with reward_server() as (server, asked):
        Path("run.yaml").write_text(yaml.safe_dump(places(SECRETS, server)))
        train = ["train", "run.yaml", "--out", "out", "--device", "cpu", "--trust"]
        assert main(train) == 0
        text = Path("run.yaml").read_text()
        Path("failing.yaml").write_text(text.replace("secret_rewards:Own", "secret_rewards:Telling"))
        train[1], train[3] = "failing.yaml", "failed"
        assert main(train[:-1]) == 2 and main(train) == 2  # without --trust, and by a reward that tells its key
        Path("faulty.yaml").write_text(text + f"lr: {SECRETS['an API key']}\n")
        assert main(["check", "faulty.yaml", "--device", "cpu", "--trust"]) == 1
    given = MADE_WITH[0]
    assert given["api_key"] == OPAQUE and given["headers"]["X-Key"] in SECRETS.values(), "rewards get what they need"
    assert any(header for header in asked)
    assert main(["verify", "out/adapter", "--no-card"]) == 0
    assert main(["push", "out/adapter", "someone/tiny-red", "--licence", "apache-2.0", "--dry-run"]) == 0
    push("out/adapter", "someone/tiny-red", licence="apache-2.0", pause=0)
    printed = capfd.readouterr()
    seen = {"printed": printed.out + printed.err, "tracked": repr(tracked)}
    seen |= {f"pushed {name}": _text(data) for name, data in hub.files("someone/tiny-red").items()}
    seen |= {str(path): _text(path.read_bytes()) for path in Path("out").rglob("*") if path.is_file()}
    assert {"pushed README.md", "pushed run_report.json", "out/report.html", "out/settings.yaml"} <= seen.keys()
    for where, text in seen.items():
        leaked = [kind for kind, secret in SECRETS.items() if _hard(secret) in text]
        assert not leaked and OPAQUE not in text, f"{where}: {leaked}"


def _hard(secret: str) -> str:
    """The part of a secret that must be nowhere, however the rest is written: a password, a signature, a key."""
    password = re.search(r"//\w+:(\w+)@", secret)
    return password[1] if password else secret if "@" in secret else re.split(r"[^\w.-]+", secret)[-1]


def _text(data: bytes) -> str:
    """All that a file says, also what is compressed in it."""
    text = data.decode("latin-1")
    if data.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(data)) as picture:
            text += repr(picture.info)
    return text


def test_a_secret_shows_itself_to_nobody_who_does_not_ask() -> None:
    secret = Secret(OPAQUE)
    shown = [f"{secret}", repr(secret), str([secret]), repr(vars(type(secret))), f"{secret!r:>9}"]
    assert not any(OPAQUE in text for text in shown) and Secret(secret).reveal() == OPAQUE
    assert secret == Secret(OPAQUE) != Secret("x") and copy.deepcopy([secret]) == [secret]
    for write in (json.dumps, pickle.dumps, yaml.safe_dump):
        with pytest.raises((TypeError, yaml.YAMLError)):
            write(secret)


def test_a_token_is_no_setting_that_a_run_goes_by(tmp_path: Path) -> None:
    given = settings(SECRETS["an API key"]) | {"optimality": "rank"}
    config = TrainConfig.from_mapping(given)
    assert OPAQUE not in repr(config.rewards["vlm_judge"])
    assert config.reward_options["vlm_judge"]["key"] == OPAQUE  # what the reward gets
    stored = config.to_dict()
    assert stored["rewards"]["vlm_judge"]["key"] == "(secret)"
    check_settings(tmp_path, {**stored, "rewards": given["rewards"]}, stored)  # a file of an earlier version
    served = next(iter(given["rewards"]))
    other = {**given["rewards"], served: {**given["rewards"][served], "token": "another"}}
    check_settings(tmp_path, stored, TrainConfig.from_mapping({**given, "rewards": other}).to_dict())
