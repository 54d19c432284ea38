"""read_adapter and pull through the real client: what is refused, and the sentence that helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from helpers.adapters import assert_same
from helpers.cards import light_adapter
from helpers.local_hub import TOKEN, Fault, LocalHub
from helpers.tiny import tiny_adapter, tiny_pipe
from nft_pipeline.adapter import AdapterError, read_adapter, write_adapter
from nft_pipeline.adapters import fetch
from nft_pipeline.adapters import read as adapter_read
from nft_pipeline.hub_cards.pull import pull
from nft_pipeline.hub_cards.verify import verify
from nft_pipeline.pipeline import DiffusionNFTPipeline

REPO = "someone/tiny-red"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = write_adapter(tmp_path_factory.mktemp("a") / "adapter", light_adapter(), {"README.md": b"# card"})
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_nothing_but_safetensors_json_markdown_and_png_is_fetched(
    hub: LocalHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add(REPO, {**files, "run.py": b"print(1)", "old.bin": b"x", "x.pkl": b"x", "plots/a.png": b"x", "c.yaml": b"x"})
    assert_same(read_adapter(REPO), light_adapter())
    folder = pull(REPO, tmp_path / "here")
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == sorted(
        [*(Path(name).name for name in files), "a.png"]
    )
    fetched = {path for _, path in hub.requests if "/resolve/" in path}
    assert not [path for path in fetched if path.endswith((".py", ".bin", ".pkl", ".yaml"))]


def test_what_is_too_large_is_not_fetched(
    hub: LocalHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, files)
    monkeypatch.setattr(fetch, "MAX_LORA_BYTES", 500)
    monkeypatch.setattr(fetch, "MAX_HEAD_BYTES", 500)
    monkeypatch.setattr(fetch, "MAX_REPOSITORY_BYTES", 2000)
    with pytest.raises(AdapterError, match="too large for an adapter") as caught:
        read_adapter(REPO)
    text = str(caught.value)
    assert "pytorch_lora_weights.safetensors is" in text and "at most 1,000 are read" in text
    assert "together they are" in text and "subfolder=" in text
    assert not [path for _, path in hub.requests if "/resolve/" in path]


def test_by_revision_and_subfolder_and_offline(
    hub: LocalHub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.add(REPO, files)
    first = repo.refs["main"]
    repo.tags["v1"] = first
    newer = write_adapter(tmp_path / "newer", light_adapter(seed=4))
    hub.commit(repo, "main", {p.relative_to(newer).as_posix(): p.read_bytes() for p in newer.rglob("*") if p.is_file()})
    assert_same(read_adapter(REPO), light_adapter(seed=4))
    for revision in ("v1", first):
        assert_same(read_adapter(REPO, revision=revision), light_adapter())
    hub.add("someone/several", {f"a/b/{path}": data for path, data in files.items()})
    assert_same(read_adapter("someone/several", subfolder="a/b"), light_adapter())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert_same(read_adapter(REPO, revision="v1"), light_adapter())
    pull(REPO, tmp_path / "offline")
    with pytest.raises(AdapterError, match="the Hub cannot be reached"):
        read_adapter("someone/new")


def test_what_is_missing_private_or_gated(
    hub: LocalHub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, files).gated = True
    hub.add("someone/secret", files, private=True)
    monkeypatch.delenv("HF_TOKEN")
    for ask in (read_adapter, lambda repo: pull(repo, tmp_path / "x")):
        with pytest.raises(AdapterError, match=r"the repository is gated\n.*Accept its terms on https://"):
            ask(REPO)
        for repo in ("someone/secret", "someone/nothing"):
            with pytest.raises(AdapterError, match=r"no such repository, or it is private\n.*hf auth login"):
                ask(repo)
    with pytest.raises(AdapterError, match="no revision 'v9'"):
        hub.repos[REPO].gated = False
        read_adapter(REPO, revision="v9")
    assert not (tmp_path / "x").exists()


def test_by_token_and_cache_folder_and_from_there_alone(
    hub: LocalHub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("someone/secret", {f"warm/{path}": data for path, data in files.items()}, private=True)
    monkeypatch.delenv("HF_TOKEN")
    where: dict[str, Any] = {"subfolder": "warm", "cache_dir": tmp_path / "kept"}
    with pytest.raises(AdapterError, match="no such repository, or it is private"):
        read_adapter("someone/secret", **where)
    with pytest.raises(AdapterError, match="local_files_only was given and there is no whole copy in the local cache"):
        read_adapter("someone/secret", **where, token=TOKEN, local_files_only=True)
    assert_same(read_adapter("someone/secret", **where, token=TOKEN), light_adapter())
    asked = len(hub.requests)
    assert_same(read_adapter("someone/secret", **where, local_files_only=True), light_adapter())
    assert len(hub.requests) == asked, "nobody was asked"
    assert list((tmp_path / "kept").glob("models--someone--secret"))


def test_a_pipeline_and_its_adapter_share_what_is_said_of_the_hub(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tiny_pipe()
    pipe.save_pretrained(tmp_path / "base")
    write_adapter(tmp_path / "adapter", tiny_adapter(pipe.transformer))
    files = [path for path in (tmp_path / "adapter").rglob("*") if path.is_file()]
    repo = hub.add("someone/secret", {f"warm/{f.relative_to(tmp_path / 'adapter')}": f.read_bytes() for f in files})
    repo.private, repo.tags["v1"] = True, repo.refs["main"]
    monkeypatch.delenv("HF_TOKEN")
    access: dict[str, Any] = {"token": TOKEN, "cache_dir": tmp_path / "kept"}
    guided = DiffusionNFTPipeline.from_pretrained(
        tmp_path / "base", "someone/secret", nft_revision="v1", nft_subfolder="warm", **access
    )
    assert guided.nft_config.name == "tiny"
    guided.load_nft_adapter(
        "someone/secret", name="again", revision="v1", subfolder="warm", **access, local_files_only=True
    )
    assert list(guided.nft_adapters) == ["default", "again"]
    assert list((tmp_path / "kept").glob("models--someone--secret"))


def test_a_copy_that_was_damaged_on_the_way_is_not_taken(
    hub: LocalHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add(REPO, files)
    cached = adapter_read.locate(REPO)
    blob = (cached / "README.md").resolve()
    blob.write_bytes(b"# cord")
    with pytest.raises(AdapterError, match=r"is not what the Hub lists:\n  - README.md has another hash"):
        pull(REPO, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_folder_with_other_things_in_it_is_left_alone(hub: LocalHub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.add(REPO, files)
    (tmp_path / "thesis.md").write_text("mine")
    with pytest.raises(AdapterError, match="exists and is no adapter"):
        pull(REPO, tmp_path)
    assert (tmp_path / "thesis.md").read_text() == "mine"


def test_a_broken_line_is_tried_again_and_one_that_stays_broken_has_its_sentence(
    hub: LocalHub, files: dict[str, bytes]
) -> None:
    hub.add(REPO, files)
    hub.fail(Fault("GET", "/resolve/.*nft_config.json", "reset", None))
    with pytest.raises(AdapterError, match=r"the download failed: .*\n.*Try again; what was fetched is kept"):
        read_adapter(REPO)
    hub.fail(Fault("GET", "/resolve/.*nft_config.json", "reset"))
    assert_same(read_adapter(REPO), light_adapter())


@pytest.mark.parametrize("what", ["html", "json", "empty", "cut"])
@pytest.mark.parametrize("where", [".", "/tree/", "/resolve/", "/api/models/[^/]+/[^/]+(/revision/.*)?$"])
def test_what_is_not_the_hub_is_named(
    what: str, where: str, hub: LocalHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    """A hotel's page to log in, a proxy, an answer that was cut off: a sentence, or the very adapter."""
    hub.add(REPO, files)
    hub.fail(*(Fault(method, where, what, times=None) for method in ("GET", "HEAD")))
    for ask in (read_adapter, lambda repo: read_adapter(pull(repo, tmp_path / "x")), verify):
        try:
            got = ask(REPO)
        except AdapterError as error:
            assert len(str(error)) > 40
        else:
            assert isinstance(got, list) or got.config == light_adapter().config
