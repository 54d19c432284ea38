"""A dial in an adapter's files: it comes back as it was, every fault is named, and newer fields are kept."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.adapters import assert_same, config_values, tiny_adapter
from helpers.dialled import a_dial, tilt_map
from nft_pipeline.adapter import AdapterConfig, AdapterError, read_adapter, write_adapter
from nft_pipeline.adapters.config import FORMAT
from nft_pipeline.adapters.single_file import read_single_file
from nft_pipeline.files.versions import plain

TWO = a_dial(tilt_map(), tilt_map(mode="two_pass", guidance_scale=3.0, slope=0.0), note="measured twice")
ON = a_dial(tilt_map(goes_on=True), tilt_map(mode="two_pass"))


def values(**changed: Any) -> dict[str, Any]:
    """A config with a dial, as a file of the dial's first version holds it; `changed` goes into the dial."""
    dial = json.loads(json.dumps(plain(TWO)))
    for entry in dial["maps"]:
        del entry["goes_on"]
    return config_values(dial=dial | changed, format_minor=FORMAT.added["dial"])


def with_map(**changed: Any) -> dict[str, Any]:
    """The same with `changed` in the second map."""
    found = values()
    found["dial"]["maps"][1] |= changed
    return found


@pytest.mark.parametrize("kind", ["positive", "policy"])
def test_a_dial_comes_back_from_the_folder_and_from_the_single_file(tmp_path: Path, kind: str) -> None:
    adapter = tiny_adapter(kind=kind)
    adapter = replace(adapter, config=replace(adapter.config, dial=TWO))
    write_adapter(tmp_path / "a", adapter)
    back = read_adapter(tmp_path / "a")
    assert back.config.dial == TWO and isinstance(back.config.dial.maps[0].tilts, tuple)
    assert_same(back, replace(adapter, config=replace(adapter.config, format_minor=FORMAT.added["dial"])))
    single = read_single_file(tmp_path / "a" / "comfyui" / f"{adapter.config.name}.safetensors")
    assert single is not None and single.config.dial == TWO
    assert json.loads(back.config.to_json())["dial"] == values()["dial"]


def test_a_way_that_goes_on_is_kept_and_needs_the_minor_version_it_came_with() -> None:
    config = replace(tiny_adapter().config, dial=ON)
    written = json.loads(config.to_json())
    minor, default = FORMAT.inside["dial.maps.goes_on"]
    assert written["format_minor"] == minor == FORMAT.minor and default is False
    assert [entry.get("goes_on") for entry in written["dial"]["maps"]] == [True, None]
    assert AdapterConfig.from_json(config.to_json()).dial == ON
    old = AdapterConfig.from_dict(values())
    assert json.loads(old.to_json()) == values(), "a dial of the first version is written as it was"
    assert not any(entry.goes_on for entry in old.dial.maps) and old.dial.own_reach.maps == (old.dial.own,)


def test_an_adapter_without_a_dial_is_written_as_before() -> None:
    text = AdapterConfig.from_dict(config_values()).to_json()
    assert "dial" not in text and "format_minor" not in text
    assert AdapterConfig.from_dict(config_values(dial=None)).dial is None


def test_a_dial_without_a_note_takes_none() -> None:
    found = values()
    del found["dial"]["note"]
    assert AdapterConfig.from_dict(found).dial == replace(TWO, note="")


FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a text": (config_values(dial="0.5"), ["dial is '0.5'", "an object with named fields, or null"]),
    "a list": (config_values(dial=[]), ["dial is []"]),
    "misspelt": (values(spraed=0.1), ["dial.spraed is unknown; did you mean spread?"]),
    "judge unknown": (values(judged_by="me"), ["dial.judged_by is 'me'", "reward, alpha or person"]),
    "judge blank": (values(judge=" "), ["dial.judge is ' '"]),
    "rate one": (values(rate=1.0), ["dial.rate is 1.0", "above 0, below 1"]),
    "rate not a number": (values(rate=float("nan")), ["dial.rate is nan"]),
    "spread wide": (values(spread=0.6), ["dial.spread is 0.6", "from 0 to 0.5"]),
    "pictures none": (values(pictures=0), ["dial.pictures is 0", "a whole number from 1"]),
    "slope above one": (values(slope=1.2), ["dial.slope is 1.2"]),
    "offsets fall": (values(offsets=[[0.8, 0], [0.2, 0]]), ["dial.offsets is [[0.8, 0], [0.2, 0]]", "levels rising"]),
    "offsets alone": (values(offsets=[0.2]), ["dial.offsets is [0.2]"]),
    "offsets infinite": (values(offsets=[[0.2, float("inf")]]), ["dial.offsets is [[0.2, inf]]"]),
    "note a number": (values(note=3), ["dial.note is 3"]),
    "no maps": (values(maps=[]), ["dial.maps is []", "1 to 32 objects"]),
    "maps of texts": (values(maps=["a"]), ["dial.maps is ['a']"]),
    "map misspelt": (with_map(mood="single"), ["dial.maps[1].mood is unknown; did you mean mode?"]),
    "mode unknown": (with_map(mode="one"), ["dial.maps[1].mode is 'one'"]),
    "guide unknown": (with_map(guide="none"), ["dial.maps[1].guide is 'none'", "both or cond"]),
    "lengths": (with_map(errors=[0.1, 0.1]), ["dial.maps[1] has lists of different lengths (tilts 4", "errors 2)"]),
    "weights fall": (
        with_map(weights=[-1, 0, 2, 1]),
        ["dial.maps[1].weights is [-1, 0, 2, 1]", "above the one before"],
    ),
    "weights equal": (with_map(weights=[-1, 0, 1, 1]), ["dial.maps[1].weights is"]),
    "weights large": (with_map(weights=[-1, 0, 1, 5]), ["numbers from -4 to 4"]),
    "tilts fall": (with_map(tilts=[0, -1, 1, 2]), ["dial.maps[1].tilts is"]),
    "tilts with a gap": (with_map(tilts=[-2, 0, None, 2]), ["dial.maps[1].tilts is [-2, 0, None, 2]"]),
    "rate above one": (with_map(rates=[0.1, 0.4, 0.6, 1.1]), ["dial.maps[1].rates is"]),
    "error not a number": (with_map(errors=[0, 0, 0, float("nan")]), ["dial.maps[1].errors is"]),
    "base model moved": (with_map(weights=[-1, 0.1, 0.5, 2]), ["dial.maps[1] does not map tilt 0 to weight 0"]),
    "goes on, how far": (with_map(goes_on=2), ["dial.maps[1].goes_on is 2", "true or false"]),
    "no tilt 0": (with_map(tilts=[-2, 0.1, 1, 4]), ["does not map tilt 0 to weight 0, which is the base model"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(fault: str) -> None:
    wrong, phrases = FAULTS[fault]
    with pytest.raises(AdapterError) as caught:
        AdapterConfig.from_dict(copy.deepcopy(wrong))
    assert len(caught.value.faults) == 1
    for phrase in phrases:
        assert phrase in str(caught.value), str(caught.value)


@pytest.mark.parametrize("name", [name for name in plain(TWO) if name != "note"])
def test_each_missing_field_is_named(name: str) -> None:
    found = values()
    del found["dial"][name]
    with pytest.raises(AdapterError, match=f"dial.{name} is missing"):
        AdapterConfig.from_dict(found)


@pytest.mark.parametrize("name", [name for name in plain(tilt_map()) if name != "goes_on"])
def test_each_missing_field_of_a_map_is_named(name: str) -> None:
    found = values()
    del found["dial"]["maps"][0][name]
    with pytest.raises(AdapterError, match=rf"dial.maps\[0\].{name} is missing"):
        AdapterConfig.from_dict(found)


def test_a_dial_made_in_python_is_checked_too() -> None:
    config = AdapterConfig.from_dict(config_values())
    with pytest.raises(AdapterError, match=r"dial.maps\[0\] has lists of different lengths"):
        replace(config, dial=a_dial(tilt_map(rates=(0.1, 0.4))))
    with pytest.raises(AdapterError, match=r"dial\.rate is 0"):
        replace(config, dial=a_dial(rate=0))


def test_what_a_newer_minor_version_wrote_is_kept() -> None:
    found = values(quality=0.9)
    found["dial"]["maps"][1]["watts"] = [1, None]
    with pytest.raises(AdapterError, match=r"dial\.quality is unknown"):
        AdapterConfig.from_dict(found)
    found["format_minor"] = FORMAT.minor + 1
    with pytest.warns(UserWarning, match=r"dial\.quality, dial\.maps\.watts"):
        config = AdapterConfig.from_json(json.dumps(found))
    assert json.loads(config.to_json()) == found
    assert config.dial is not None and config.dial.own == TWO.own and config.dial.extra == {"quality": 0.9}


def test_the_map_is_that_of_the_mode_at_the_nearest_guidance_scale() -> None:
    maps = [
        tilt_map(guidance_scale=1.0),
        tilt_map(guidance_scale=5.0),
        tilt_map(guidance_scale=5.0, guide="cond", pictures=7),
        tilt_map(mode="two_pass", guidance_scale=3.0),
    ]
    dial = a_dial(*maps)
    for asked, place in (
        ((None, None, None), 0),
        (("single", 1.9, "both"), 0),
        (("single", 3.5, "both"), 1),
        (("single", 9.0, "cond"), 2),
        (("single", 1.0, "cond"), 2),
        (("two_pass", 1.0, None), 3),
        (("batched", 9.0, "both"), 3),
        (("two_pass", 1.0, "cond"), 3),
    ):
        assert dial.map_for(*asked) is maps[place], asked
    assert dial.map_for("two_pass", 3.0, "cond") is None, "under guidance the two ways of guiding are not the same"
    assert a_dial().map_for("two_pass") is None


def test_the_own_way_goes_on_in_the_two_passes_of_the_same_guidance_scale() -> None:
    further = {"tilts": (-1.0, 0.0, 3.0, 4.5, 6.0), "rates": (0.2, 0.41, 0.85, 0.89, 0.95)}
    two = tilt_map(mode="two_pass", weights=(-1, 0, 1, 2, 3), errors=(0.02, 0.01, 0.02, 0.04, 0.05), **further)
    at_5 = replace(two, guidance_scale=5.0)
    dial = a_dial(tilt_map(goes_on=True), at_5, two)
    own = dial.own_reach
    assert own == dial.reach() and own.maps == (dial.own, two)
    assert own.tilts == (-2.0, 0.0, 1.0, 4.0, 6.0) and own.rates == (0.1, 0.4, 0.6, 0.9, 0.95)
    assert own.errors == (0.02, 0.01, 0.02, 0.03, 0.05) and (own.lowest, own.highest) == (-2.0, 6.0)
    assert [own.map_at(tilt).mode for tilt in (-9.0, 0.0, 4.0, 4.001, 9.0)] == ["single"] * 3 + ["two_pass"] * 2
    assert dial.reach("single").maps == (dial.own,), "a mode that is asked for ends where it ends"
    assert dial.reach("two_pass").maps == (two,) and dial.reach("two_pass", 5.0).maps == (at_5,)
    assert own.gives(0.95) and own.gives(0.1) and not own.gives(0.96) and not dial.reach("single").gives(0.95)


def test_a_way_goes_on_only_where_there_is_something_to_go_on_in() -> None:
    first = tilt_map(goes_on=True)
    shorter = tilt_map(mode="two_pass", tilts=(-2.0, 0.0, 1.0, 3.0))
    lower = tilt_map(mode="two_pass", tilts=(-2.0, 0.0, 1.0, 5.0), rates=(0.1, 0.4, 0.6, 0.8))
    for others in ((), (tilt_map(mode="two_pass", guidance_scale=3.0),), (shorter,), (lower,)):
        dial = a_dial(first, *others)
        assert dial.own_reach.maps == (first,) and dial.own_reach.rates == first.rates, others
    assert a_dial(tilt_map(), tilt_map(mode="two_pass", tilts=(-2.0, 0.0, 1.0, 6.0))).own_reach.highest == 4.0
