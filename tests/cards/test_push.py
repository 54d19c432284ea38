"""Pushing through the real client: one commit with everything, private, and the same one whatever breaks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, get_session

from helpers.cards import full_report, light_adapter, picture, shared_adapter
from helpers.local_hub import Fault, LocalHub
from nft_pipeline.adapter import AdapterError, read_adapter, write_adapter
from nft_pipeline.adapters.write import adapter_files
from nft_pipeline.cli import main
from nft_pipeline.hub_cards.hub import HubError
from nft_pipeline.hub_cards.push import Pushed, make_package, push
from nft_pipeline.hub_cards.verify import verify
from nft_pipeline.models import ADAPTERS

REPO = "someone/tiny-red"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_adapter(tmp_path_factory.mktemp("push") / "adapter")


def put(folder: Path | str, **options: Any) -> Pushed:
    return push(folder, REPO, **{"pause": 0, "timeout": 2, **options})


def on_disk(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_everything_goes_up_in_one_private_commit(adapter: Path, hub: LocalHub) -> None:
    pushed = put(adapter)
    assert hub.repos[REPO].private and pushed.private
    assert hub.history(REPO) == 1 and hub.repos[REPO].refs["main"] == pushed.commit
    held = hub.files(REPO)
    assert {path: held[path] for path in on_disk(adapter)} == on_disk(adapter)
    assert set(held) - set(on_disk(adapter)) == {"README.md", "plots/comfyui_workflow.png", "plots/strip.png"}
    assert ModelCard(held["README.md"].decode()).data.license == "apache-2.0"
    assert not (adapter / "README.md").exists()  # pushing leaves the folder as it is


def test_pushing_again_changes_nothing(adapter: Path, hub: LocalHub) -> None:
    first, second = put(adapter), put(adapter)
    assert first == second and hub.history(REPO) == 1


def test_what_an_older_adapter_left_goes_away_and_what_is_not_ours_stays(tmp_path: Path, hub: LocalHub) -> None:
    put(shared_adapter(tmp_path / "a"))
    repo = hub.repos[REPO]
    hub.commit(repo, "main", {**hub.files(REPO), ".gitattributes": b"*.png filter=lfs", "notes.txt": b"mine"})
    put(write_adapter(tmp_path / "b", light_adapter("policy", name="other")))
    assert sorted(hub.files(REPO)) == [
        ".gitattributes",
        "README.md",
        "comfyui/other.safetensors",
        "nft_config.json",
        "notes.txt",
        "plots/comfyui_workflow.png",
        "pytorch_lora_weights.safetensors",
    ]
    assert hub.history(REPO) == 3


def test_a_dry_run_sends_nothing(adapter: Path, hub: LocalHub) -> None:
    package = make_package(adapter, REPO)
    assert "nft_config.json" in package.listing() and REPO in package.card.text
    assert not hub.repos
    assert {method for method, _ in hub.requests} <= {"GET", "HEAD"}  # the base model's card was asked for


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_ships_goes_up_whole(name: str, tmp_path: Path, hub: LocalHub, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the package leaves out the file for ComfyUI: the Hub's own check finds nothing wrong."""
    assert main(["push", name, REPO, "--dry-run"]) == 0
    assert f"comfyui/{name}.safetensors" in capsys.readouterr().out and not hub.repos
    put(name)
    held = hub.files(REPO)
    for path, data in held.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    assert verify(tmp_path) == []
    assert held[f"comfyui/{name}.safetensors"] == adapter_files(read_adapter(name))[f"comfyui/{name}.safetensors"]


def test_the_file_for_comfyui_is_made_where_it_is_missing(adapter: Path, tmp_path: Path, hub: LocalHub) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    shutil.rmtree(folder / "comfyui")
    assert make_package(folder, REPO).files == make_package(adapter, REPO).files
    assert not (folder / "comfyui").exists()


def test_a_file_for_comfyui_that_is_there_is_never_replaced(adapter: Path, tmp_path: Path, hub: LocalHub) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    os.rename(folder / "comfyui/tiny-red.safetensors", folder / "comfyui/old.safetensors")
    with pytest.raises(AdapterError, match=r"old\.safetensors: is another file than comfyui/tiny-red\.safetensors"):
        make_package(folder, REPO)


def test_revision_tag_and_public(adapter: Path, hub: LocalHub) -> None:
    pushed = put(adapter, revision="next", tag="v1", private=False)
    repo = hub.repos[REPO]
    assert not repo.private and not pushed.private
    assert repo.refs["next"] == repo.tags["v1"] == pushed.commit and not hub.files(REPO, "main")
    assert put(adapter, revision="next", tag="v1") == pushed


def test_a_tag_is_never_moved(adapter: Path, tmp_path: Path, hub: LocalHub) -> None:
    pushed = put(adapter, tag="v1")
    other = shared_adapter(tmp_path / "a", light_adapter(seed=4))
    with pytest.raises(HubError, match=rf"the tag v1 is there already, for the commit {pushed.commit[:10]}"):
        put(other, tag="v1")
    assert hub.repos[REPO].tags["v1"] == pushed.commit


def test_a_pull_request_is_not_opened_twice(adapter: Path, tmp_path: Path, hub: LocalHub) -> None:
    hub.add(REPO, {"README.md": b"# before"})
    hub.fail(Fault("POST", "/commit/", "lost"))
    first = put(adapter, create_pr=True)
    assert first.pull_request and hub.files(REPO) == {"README.md": b"# before"}
    assert put(adapter, create_pr=True) == first and list(hub.repos[REPO].titles) == ["1"]
    put(shared_adapter(tmp_path / "a", light_adapter(seed=4)), create_pr=True)
    assert list(hub.repos[REPO].titles) == ["1", "2"]
    with pytest.raises(AdapterError, match="a pull request goes to main"):
        put(adapter, create_pr=True, tag="v1")


def test_collections_by_title_and_slug(adapter: Path, hub: LocalHub) -> None:
    put(adapter, collection="Reward dials")
    put(adapter, collection="Reward dials")
    (slug,) = hub.collections
    put(adapter, collection=slug)
    assert [item["id"] for item in hub.collections[slug]["items"]] == [REPO] and hub.collections[slug]["private"]


# Where the protocol is cut: before anything is there, between files, at the commit, and when its answer gets lost.
CUTS = {
    "create: 500": Fault("POST", "/api/repos/create", 500, None),
    "create: its answer is lost": Fault("POST", "/api/repos/create", "lost", None),
    "who are you: 401": Fault("GET", "/api/models/.*/revision/", 401, None),
    "reading what is there: reset": Fault("GET", "/tree/", "reset", None),
    "the card is checked: reset": Fault("POST", "/api/validate-yaml", "reset", None),
    "preupload: 413": Fault("POST", "/preupload/", 413, None),
    "large files: 503": Fault("POST", "/info/lfs/", 503, None),
    "second large file: reset": Fault("PUT", "/_lfs/", "reset", None, skip=1),
    "upload is checked: 403": Fault("POST", "/_lfs_verify", 403, None),
    "commit: 409": Fault("POST", "/commit/", 409, None),
    "commit: 412": Fault("POST", "/commit/", 412, None),
    "commit: silence": Fault("POST", "/commit/", "silence", None),
    "commit: reset": Fault("POST", "/commit/", "reset", None),
    "tag: 500": Fault("POST", "/tag/", 500, None),
}
AFTER_THE_COMMIT = ("tag: 500",)


@pytest.fixture(scope="module")
def undisturbed(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The commit that a push ends in where nothing breaks."""
    with LocalHub() as calm, pytest.MonkeyPatch.context() as patch:
        calm.use_here(patch, tmp_path_factory.mktemp("calm"))
        return put(adapter, tag="v1").commit


@pytest.mark.parametrize("cut", CUTS)
def test_cut_off_anywhere_and_done_again_it_ends_in_the_same_commit(
    cut: str, adapter: Path, undisturbed: str, hub: LocalHub
) -> None:
    fault = CUTS[cut]
    hub.fail(Fault(fault.method, fault.path, fault.what, None, fault.skip))
    with pytest.raises(HubError) as caught:
        put(adapter, tag="v1", tries=2, timeout=0.5)
    assert hub.faults[0].met and f"not pushed to {REPO}" in str(caught.value)
    if REPO in hub.repos:
        assert bool(hub.files(REPO)) == (cut in AFTER_THE_COMMIT)  # nothing, or everything
        assert hub.repos[REPO].private
    hub.fail()
    assert put(adapter, tag="v1").commit == undisturbed
    assert hub.history(REPO) == 1 and hub.repos[REPO].tags == {"v1": undisturbed}


@pytest.mark.parametrize("what", [409, 500, "reset", "lost", "silence"])
def test_a_passing_fault_at_the_commit_is_got_over(what: Any, adapter: Path, undisturbed: str, hub: LocalHub) -> None:
    hub.fail(Fault("POST", "/commit/", what))
    assert put(adapter, timeout=0.5).commit == undisturbed
    assert hub.history(REPO) == 1
    assert get_session().timeout.read is None  # the client's patience is its own again


def test_two_at_once_do_not_undo_each_other(adapter: Path, tmp_path: Path, hub: LocalHub) -> None:
    """Somebody commits between the look and the commit: the commit is refused, and the next look sees it."""
    hub.add(REPO, {"notes.txt": b"one"})

    class Meanwhile(Fault):
        def strikes(self, method: str, path: str) -> bool:
            if method == "POST" and "/preupload/" in path and not self.met:
                self.met = 1
                hub.commit(hub.repos[REPO], "main", {"notes.txt": b"two"})
            return False

    hub.fail(Meanwhile("POST", "/preupload/", 0))
    put(adapter)
    assert sum("/commit/" in path for _, path in hub.requests) == 2  # the first one was refused for its parent
    assert hub.files(REPO)["notes.txt"] == b"two" and "nft_config.json" in hub.files(REPO)


@pytest.mark.parametrize(
    ("fault", "phrase"),
    [
        (Fault("POST", "/commit/", 403), r"your token may not do that there .*\n.*pull request"),
        (Fault("POST", "/commit/", 413), "a file is too large for the Hub"),
        (Fault("POST", "/commit/", 401), r"does not know who you are .*\n.*hf auth login"),
        (Fault("POST", "/commit/", 500, None), r"error 500\n.*Try again"),
        (Fault("POST", "/commit/", "reset", None), r"the connection failed .*\n.*nothing is published by halves"),
        (Fault("POST", "/commit/", 412, None), "kept changing meanwhile"),
    ],
)
def test_each_refusal_has_its_sentence(fault: Fault, phrase: str, adapter: Path, hub: LocalHub) -> None:
    hub.fail(Fault(fault.method, fault.path, fault.what, fault.times))
    with pytest.raises(HubError, match=phrase):
        put(adapter, tries=2)


def test_without_a_token(adapter: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="hf auth login"):
        put(adapter)


def test_an_adapter_with_faults_is_not_sent(adapter: Path, tmp_path: Path, hub: LocalHub) -> None:
    folder = tmp_path / "a"
    shutil.copytree(adapter, folder)
    (folder / "optimizer.pt").write_bytes(b"x")
    home = "/" + "home/anna/sd3"
    (folder / "samples" / "0-0.png").write_bytes(picture(workflow=home))
    with pytest.raises(AdapterError, match=r"was not pushed; it has faults") as caught:
        put(folder)
    assert "optimizer.pt: is a pickle" in str(caught.value) and f"holds the local path {home}" in str(caught.value)
    assert not hub.repos


def test_a_faulty_report_is_not_sent(tmp_path: Path, hub: LocalHub) -> None:
    folder = shared_adapter(tmp_path / "a", report=full_report())
    (folder / "run_report.json").write_text('{"format_version": 1, "reward": []}')
    with pytest.raises(AdapterError, match=r"run_report.json: reward is unknown; did you mean rewards\?"):
        put(folder)


@pytest.mark.parametrize("name", ["red", "a/b/c", "some one/red", ""])
def test_what_is_no_repository(name: str, adapter: Path) -> None:
    with pytest.raises(AdapterError, match='expected "owner/name"'):
        push(adapter, name)
