"""Files of version 1, byte for byte, are read and written again; files of other versions are kept, migrated or refused.

tests/fixtures/version_1 holds what the version before the first change of a format wrote. Never write it anew.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pytest

from helpers.adapters import config_values
from helpers.cards import full_report
from nft_pipeline.adapter import AdapterConfig, AdapterError, read_adapter
from nft_pipeline.adapters import config as config_module
from nft_pipeline.adapters.alpha_head import AlphaHeadConfig
from nft_pipeline.adapters.names import HEAD_FILE
from nft_pipeline.adapters.single_file import read_single_file
from nft_pipeline.adapters.write import adapter_files
from nft_pipeline.checks import text, whole
from nft_pipeline.files.versions import Format, Part, VersionError, plain
from nft_pipeline.hub_cards import report as report_module
from nft_pipeline.hub_cards.report import RunReport

VERSION_1 = Path(__file__).parents[1] / "fixtures" / "version_1"
WHOLE = ("shapes-follow", "half-done-offline", "half-done-online")  # of shapes-warm only the JSON is kept
NEWER = "made by a newer version.*pip install -U diffusion-nft"


@pytest.fixture(autouse=True)
def no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("name", WHOLE)
def test_adapters_of_version_1_are_written_again_as_the_same_bytes(name: str) -> None:
    folder = VERSION_1 / "adapters" / name
    for path, data in adapter_files(read_adapter(folder)).items():
        before = (folder / path).read_bytes()
        if path == HEAD_FILE:  # its header holds a hash and the head's config since, and its tensors are the same
            data, before = (content[8 + int.from_bytes(content[:8], "little") :] for content in (data, before))
        assert data == before, path
    assert read_single_file(folder / "comfyui" / f"{name}.safetensors") is not None


@pytest.mark.parametrize("name", [*WHOLE, "shapes-warm"])
def test_json_of_version_1_is_written_again_as_the_same_bytes(name: str) -> None:
    folder = VERSION_1 / "adapters" / name
    text = (folder / "nft_config.json").read_text("utf-8")
    assert AdapterConfig.from_json(text).to_json() == text
    if (folder / "run_report.json").is_file():
        text = (folder / "run_report.json").read_text("utf-8")
        assert RunReport.from_json(text).to_json() == text
    if (folder / "alpha_head").is_dir():
        head = json.loads((folder / "alpha_head" / "config.json").read_text("utf-8"))
        assert AlphaHeadConfig.from_dict(head).to_dict() == head


def test_a_shipped_adapter_is_written_again_as_version_1_wrote_it() -> None:
    """shapes-follow without the dial that was measured since, and with it its tilt; shapes-warm was trained anew."""
    sums = dict(line.split()[::-1] for line in (VERSION_1 / "shipped.sha256").read_text().splitlines())
    then = AdapterConfig.from_json((VERSION_1 / "adapters" / "shapes-follow" / "nft_config.json").read_text("utf-8"))
    adapter = read_adapter("shapes-follow")
    assert adapter.config.dial is not None and then.dial is None
    config = replace(adapter.config, dial=None, format_minor=0, beta=then.beta, tilt=then.tilt)
    written = {f"shapes-follow/{path}": data for path, data in adapter_files(replace(adapter, config=config)).items()}
    assert {path: hashlib.sha256(data).hexdigest() for path, data in written.items()} == {
        path: digest for path, digest in sums.items() if path.startswith("shapes-follow")
    }


def test_a_head_of_an_older_version_takes_the_defaults() -> None:
    assert AlphaHeadConfig.from_dict({"feature_dim": 8}) == AlphaHeadConfig(8)


def test_fields_of_a_newer_minor_version_are_kept_named_and_written_again() -> None:
    known = config_module.FORMAT.minor
    values = config_values(format_minor=known + 1, new_word="en", new_list={"warm": [1, None]})
    values["base_model"] |= {"new_licence": "mit"}
    values["reward"] |= {"new_card": "x.json"}
    version = config_module.FORMAT_VERSION
    versions = rf"format {version}\.{known + 1}, this version reads {version}\.{known}\)"
    with pytest.warns(UserWarning, match=versions) as caught:
        config = AdapterConfig.from_json(json.dumps(values))
    assert len(caught) == 1
    message = str(caught[0].message)
    for name in ("new_word", "new_list", "base_model.new_licence", "reward.new_card", "pip install -U"):
        assert name in message
    assert json.loads(config.to_json()) == values
    assert json.loads(replace(config, strength=0.5).to_json()) == values | {"strength": 0.5}
    assert config.extra == {"new_word": "en", "new_list": {"warm": [1, None]}}


def test_a_newer_minor_version_excuses_nothing_else() -> None:
    with pytest.raises(AdapterError, match="rank is 0") as caught:
        AdapterConfig.from_dict(config_values(format_minor=config_module.FORMAT.minor + 1, new_word="en", rank=0))
    assert len(caught.value.faults) == 1
    for minor in (0, "3", -1, None):
        with pytest.raises(AdapterError, match="new_word is unknown"):
            AdapterConfig.from_dict(config_values(format_minor=minor, new_word="en"))
    with pytest.raises(AdapterError, match="new_word is unknown"):
        replace(AdapterConfig.from_dict(config_values()), extra={"new_word": "en"})


def test_a_report_keeps_what_a_newer_minor_version_wrote() -> None:
    values = json.loads(full_report().to_json()) | {"format_minor": report_module.FORMAT.minor + 1, "music": None}
    values["rewards"][0]["unit"] = "points"
    values["rewards"][0]["points"][0]["low"] = 0.1
    values["trained"]["kWh"] = 3
    with pytest.warns(UserWarning, match=r"music, rewards\.unit, rewards\.points\.low, trained\.kWh") as caught:
        report = RunReport.from_json(json.dumps(values))
    assert len(caught) == 1
    assert json.loads(report.to_json()) == values
    with pytest.raises(AdapterError, match="music is unknown"):
        RunReport.from_json(json.dumps(values | {"format_minor": 0}))


def test_a_newer_version_is_never_called_damaged() -> None:
    for read in (AdapterConfig.from_json, RunReport.from_json):
        with pytest.raises(AdapterError, match=NEWER) as caught:
            read(json.dumps({"format_version": 2, "format_minor": 4, "nothing": "else"}))
        assert "damaged" not in str(caught.value)


def test_an_older_version_is_migrated(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(values: dict[str, Any]) -> dict[str, Any]:
        return {"licence" if name == "license" else name: value for name, value in values.items()}

    old = {"license" if name == "licence" else name: value for name, value in config_values().items()}
    monkeypatch.setattr(config_module, "FORMAT", replace(config_module.FORMAT, migrations={0: renamed}))
    config = AdapterConfig.from_dict(old | {"format_version": 0, "format_minor": 7})
    assert json.loads(config.to_json()) == config_values()
    emptied = replace(report_module.FORMAT, migrations={0: lambda values: {"alpha": []}})
    monkeypatch.setattr(report_module, "FORMAT", emptied)
    assert RunReport.from_json('{"format_version": 0, "heads": []}') == RunReport()


def test_several_migrations_follow_each_other_and_one_that_is_missing_is_named() -> None:
    form = Format(version=3, migrations={1: lambda values: {"b": values["a"]}, 2: lambda values: {"c": values["b"]}})
    assert form.migrated({"format_version": 1, "a": 5}) == {"format_version": 3, "c": 5}
    assert form.migrated({"format_version": 2, "b": 5}) == {"format_version": 3, "c": 5}
    with pytest.raises(VersionError, match=r"format_version is 0, expected 1 to 3: .* damaged"):
        form.migrated({"format_version": 0})


def test_every_older_version_has_a_migration() -> None:
    for form in (config_module.FORMAT, report_module.FORMAT):
        assert set(form.migrations) == set(range(1, form.version))


@dataclass(frozen=True)
class Song(Part):
    """A file that has grown by `key` (minor version 1) and `tempo` (2)."""

    title: Annotated[str, text()]
    key: Annotated[str, text()] = "C"
    tempo: Annotated[int, whole(1)] = 90


SONG = Format(version=1, added={"key": 1, "tempo": 2})


@pytest.mark.parametrize(
    ("song", "written"),
    [
        (Song("a"), {"title": "a"}),
        (Song("a", key="D"), {"title": "a", "key": "D", "format_minor": 1}),
        (Song("a", tempo=60), {"title": "a", "tempo": 60, "format_minor": 2}),
    ],
)
def test_a_file_says_the_lowest_minor_version_that_it_needs(song: Song, written: dict[str, Any]) -> None:
    at_default = [name for name in SONG.added if getattr(song, name) == getattr(Song("a"), name)]
    assert SONG.with_version(plain(song), at_default) == written
    assert SONG.minor == 2 and SONG.is_newer({"format_minor": 3}) and not SONG.is_newer(written)


@pytest.mark.parametrize(
    ("read", "form", "first"),
    [
        (AdapterConfig, config_module.FORMAT, {*config_values(), "format_minor"}),
        (RunReport, report_module.FORMAT, {*json.loads(full_report().to_json()), "format_minor"}),
    ],
)
def test_a_field_that_came_later_says_with_which_minor_version(read: type[Part], form: Format, first: set[str]) -> None:
    later = set(read.names()) - first
    assert later == set(form.added), "a new field needs a row in FORMAT.added, beside the class"


def test_a_field_without_a_check_is_named_where_its_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"the field genre of Album has no check; write it as `genre: Annotated\[TYPE"):

        class Album(Part):
            genre: str = "jazz"
