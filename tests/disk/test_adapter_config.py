"""nft_config.json: every field checked, every fault named, all of them at once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers.adapters import config_values
from nft_pipeline.adapter import AdapterConfig, AdapterError
from nft_pipeline.adapters.config import parse_json
from nft_pipeline.adapters.names import MAX_CONFIG_BYTES

SHA = "sha256:0123456789abcdef"
FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "version from the future": ({"format_version": 2}, ["format_version is 2", "reads 1", "update diffusion-nft"]),
    "version zero": ({"format_version": 0}, ["format_version is 0", "damaged"]),
    "version as text": ({"format_version": "1"}, ["format_version is '1'", "whole number 1"]),
    "version as truth": ({"format_version": True}, ["format_version is True"]),
    "kind unknown": ({"kind": "absorbed"}, ["kind is 'absorbed'", '"positive", "policy"']),
    "kind a list": ({"kind": ["positive"]}, ["kind is ['positive']"]),
    "name leaves the folder": ({"name": "../../evil"}, ["name is '../../evil'", "without slashes"]),
    "name hidden": ({"name": ".hidden"}, ["name is '.hidden'", "plain name"]),
    "name empty": ({"name": ""}, ["name is ''"]),
    "name too long": ({"name": "x" * 101}, ["at most 100 letters"]),
    "name with a newline": ({"name": "red\n"}, ["name is 'red\\n'"]),
    "beta negative": ({"beta": -1.0}, ["beta is -1.0", "a number from"]),
    "beta a text": ({"beta": "1.0"}, ["beta is '1.0'"]),
    "beta absurd": ({"beta": 10**400}, ["beta is 1000"]),
    "tilt absurd": ({"tilt": 1e300}, ["tilt is 1e+300", "equal to 2 / beta"]),
    "tilt of another beta": ({"tilt": 4.0}, ["tilt * beta is 4, expected 2", "for this beta the tilt is 2"]),
    "strength zero": ({"strength": 0}, ["strength is 0", "above 0"]),
    "base model a text": ({"base_model": "someone/sd3"}, ["base_model is 'someone/sd3'", '"fingerprint"']),
    "base model without print": ({"base_model": {"id": "a", "revision": None}}, ["base_model.fingerprint is missing"]),
    "base model misspelt": (
        {"base_model": {"id": "a", "revison": None, "revision": None, "fingerprint": SHA}},
        ["base_model.revison is unknown; did you mean revision?"],
    ),
    "base model without id": (
        {"base_model": {"id": " ", "revision": "", "fingerprint": SHA.upper()}},
        ["base_model.id is ' '", "base_model.revision is ''", "base_model.fingerprint is 'SHA256", "16 hex digits"],
    ),
    "component a path": ({"component": "a.b"}, ["component is 'a.b'", '"transformer" or "unet"']),
    "denoiser not a class": ({"denoiser": "os.system()"}, ["denoiser is 'os.system()'", "class name"]),
    "prediction unknown": ({"prediction": "velocity"}, ["prediction is 'velocity'", '"flow", "epsilon"']),
    "rank zero": ({"rank": 0}, ["rank is 0", "from 1 to 4096"]),
    "rank absurd": ({"rank": 10**9}, ["rank is 1000000000"]),
    "rank a fraction": ({"rank": 4.0}, ["rank is 4.0", "whole number"]),
    "reward a text": ({"reward": "red"}, ["reward is 'red'", '"normaliser"']),
    "reward in American": (
        {"reward": {"name": "red", "description": "is red", "normalizer": None}},
        ["reward.normaliser is missing", "reward.normalizer is unknown; did you mean normaliser?"],
    ),
    "reward nameless": (
        {"reward": {"name": "", "description": 3, "normaliser": None}},
        ["reward.name is ''", "reward.description is 3"],
    ),
    "base rate one": ({"base_rate": 1.0}, ["base_rate is 1.0", "between 0 and 1"]),
    "base rate of a policy": ({"kind": "policy", "base_rate": 0.3}, ["base_rate is given for a policy adapter"]),
    "guidance scale negative": ({"guidance_scale": -1}, ["guidance_scale is -1", "from 0 to 100"]),
    "resolution one number": ({"resolution": [64]}, ["resolution is [64]", "[height, width]"]),
    "resolution absurd": ({"resolution": [64, 10**6]}, ["resolution is [64, 1000000]"]),
    "training not plain": ({"training": {"seeds": (0, 1)}}, ["training is {'seeds': (0, 1)}", "no tuples"]),
    "licence empty": ({"licence": "  "}, ["licence is '  '", "apache-2.0"]),
    "licence in American": ({"license": "mit"}, ["license is unknown; did you mean licence?"]),
    "a key from nowhere": ({"qqqq": 1}, ["qqqq is unknown"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(fault: str) -> None:
    changed, phrases = FAULTS[fault]
    with pytest.raises(AdapterError) as caught:
        AdapterConfig.from_dict(config_values(**changed))
    for phrase in phrases:
        assert phrase in str(caught.value)
    assert len(caught.value.faults) <= len(phrases)


OPTIONAL = {"strength": 1.0, "component": "transformer", "base_rate": None, "training": {}}


@pytest.mark.parametrize("key", [key for key in config_values() if key not in OPTIONAL])
def test_each_missing_key_is_named(key: str) -> None:
    values = config_values()
    del values[key]
    with pytest.raises(AdapterError, match=f"{key} is missing") as caught:
        AdapterConfig.from_dict(values)
    assert len(caught.value.faults) == 1


@pytest.mark.parametrize("key", OPTIONAL)
def test_a_missing_key_with_a_default_takes_it(key: str) -> None:
    values = config_values()
    del values[key]
    assert getattr(AdapterConfig.from_dict(values), key) == OPTIONAL[key]


def test_all_faults_come_in_one_report() -> None:
    with pytest.raises(AdapterError) as caught:
        AdapterConfig.from_dict(config_values(rank=0, kind="both", licence="", strength=-1), source="my.json")
    assert str(caught.value).startswith("my.json has faults:\n  - ")
    assert [fault.split()[0] for fault in caught.value.faults] == ["kind", "rank", "licence", "strength"]


def test_a_long_report_is_cut_and_says_so() -> None:
    with pytest.raises(AdapterError) as caught:
        AdapterConfig.from_dict({f"key{number}": 0 for number in range(40)})
    assert f"... and {len(caught.value.faults) - 20} more" in str(caught.value)


@pytest.mark.parametrize("kind", ["positive", "policy"])
def test_json_round_trip(kind: str) -> None:
    config = AdapterConfig.from_dict(config_values(kind=kind))
    assert AdapterConfig.from_json(config.to_json()) == config
    assert AdapterConfig.from_json(config.to_json().encode()) == config
    assert json.loads(config.to_json()) == config_values(kind=kind)
    assert config.resolution == (64, 48)


def test_python_made_configs_are_checked_too() -> None:
    sound = AdapterConfig.from_dict(config_values())
    values = {name: getattr(sound, name) for name in config_values()}
    assert AdapterConfig(**values) == sound
    with pytest.raises(AdapterError, match="tilt \\* beta is 3, expected 2"):
        AdapterConfig(**{**values, "tilt": 3.0})


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("", "not valid JSON"),
        ('{"beta": 1', "not valid JSON"),
        ('{"beta": NaN}', "the number NaN, which is not JSON"),
        ('{"beta": -Infinity}', "the number -Infinity"),
        ('{"beta": 1, "beta": 2}', "the key 'beta' stands there twice"),
        ("[1]", "holds a JSON list, expected an object"),
        ("[" * 100_000, "not valid JSON"),
        (b"\xff\xfe\xff", "not valid JSON"),
        (" " * (MAX_CONFIG_BYTES + 1), "expected at most 1,000,000"),
    ],
)
def test_broken_json_is_named(text: str | bytes, phrase: str) -> None:
    with pytest.raises(AdapterError, match=r"nft_config\.json") as caught:
        parse_json(text, "nft_config.json")
    assert phrase in str(caught.value)
