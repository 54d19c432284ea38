"""Secrets of twelve kinds in every place a person may put them: none is in what others get to see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.cards import light_adapter, shared_adapter
from helpers.local_hub import LocalHub
from nft_pipeline.adapter import AdapterError
from nft_pipeline.cli import main
from nft_pipeline.files.private import secrets_in, without_password, without_secrets
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
