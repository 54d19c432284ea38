"""What write_adapter refuses, and that the folder is then what it was."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.adapters import assert_same, tiny_adapter
from nft_pipeline.adapter import Adapter, AdapterError, read_adapter, write_adapter


@pytest.fixture(scope="module")
def made() -> Adapter:
    return tiny_adapter()


def test_an_adapter_with_faults_is_not_written(tmp_path: Path, made: Adapter) -> None:
    lora = dict(made.lora)
    key = next(iter(lora))
    lora[key] = torch.full_like(lora[key], float("nan"))
    with pytest.raises(AdapterError) as caught:
        write_adapter(tmp_path / "a", dataclasses.replace(made, lora=lora, head=None))
    assert 'the adapter "tiny-red" was not written: it has faults' in str(caught.value)
    assert "there is no alpha head" in str(caught.value) and "NaN or infinite" in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a//b", "", ".", "a\\..\\b", "C:/x", "a\0b", ".git/x"])
def test_extra_files_stay_in_the_folder(tmp_path: Path, made: Adapter, name: str) -> None:
    with pytest.raises(AdapterError, match="is no path inside the folder") as caught:
        write_adapter(tmp_path / "a", made, {name: b""})
    assert repr(name) in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["nft_config.json", "NFT_config.json", "comfyui/x", "alpha_head/x", "alpha_head"])
def test_extra_files_do_not_take_the_contracts_names(tmp_path: Path, made: Adapter, name: str) -> None:
    with pytest.raises(AdapterError, match="a name the adapter itself uses"):
        write_adapter(tmp_path / "a", made, {name: b""})


def test_extra_files_are_bytes(tmp_path: Path, made: Adapter) -> None:
    extras: dict[str, Any] = {"README.md": "text"}
    with pytest.raises(AdapterError, match=r"'README\.md' holds str, expected bytes"):
        write_adapter(tmp_path / "a", made, extras)


def test_a_folder_that_is_no_adapter_is_not_replaced(tmp_path: Path, made: Adapter) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(AdapterError, match=r"exists and is no adapter .* would delete what it holds"):
        write_adapter(tmp_path, made)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["notes.txt", ".git"])
def test_files_of_ones_own_in_an_adapter_are_not_deleted(tmp_path: Path, made: Adapter, name: str) -> None:
    folder = write_adapter(tmp_path / "a", made)
    (folder / name).mkdir()
    with pytest.raises(AdapterError, match=f"also holds {name}; replacing the adapter would delete them"):
        write_adapter(folder, made)
    assert (folder / name).is_dir()


def test_extras_may_be_written_again(tmp_path: Path, made: Adapter) -> None:
    extras = {"metrics.csv": b"1", "README.md": b"", "samples/a.png": b""}
    folder = write_adapter(tmp_path / "a", made, extras)
    write_adapter(folder, made, extras | {"metrics.csv": b"2"})
    assert (folder / "metrics.csv").read_bytes() == b"2"


def test_a_file_stands_in_the_way(tmp_path: Path, made: Adapter) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(AdapterError, match=r"could not be written to .*: a file stands where the folder should go"):
        write_adapter(tmp_path / "a", made)
    with pytest.raises(AdapterError, match=r"could not be written to .*; what stood there is unchanged"):
        write_adapter(tmp_path / "a" / "b", made)


def test_extra_files_that_are_file_and_folder_at_once(tmp_path: Path, made: Adapter) -> None:
    with pytest.raises(AdapterError, match="could not be written"):
        write_adapter(tmp_path / "a", made, {"x": b"", "x/y": b""})
    assert os.listdir(tmp_path) == []


def test_a_full_disk_keeps_the_old_adapter(tmp_path: Path, made: Adapter) -> None:
    """A limit on the size of files stands in for the full disk: the write itself fails in the kernel."""
    folder = write_adapter(tmp_path / "a", made)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(AdapterError, match=r"could not be written to .*File too large; .* unchanged") as caught:
            write_adapter(folder, tiny_adapter(seed=3))
        assert "Free some space" in str(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert_same(read_adapter(folder), made)
    assert os.listdir(tmp_path) == ["a"]
