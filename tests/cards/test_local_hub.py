"""The tests' own Hub: the real client finds there what it put there, and trips where it is told to."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from helpers.local_hub import TOKEN, Fault, LocalHub

FILES = {"README.md": b"---\nlicense: mit\n---\n# x", "a.safetensors": b"\0\1\2" * 999, "b/c.json": b"{}"}


def operations(files: dict[str, bytes] = FILES) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path, data) for path, data in files.items()]


def test_what_goes_up_comes_down(hub: LocalHub, tmp_path: Path) -> None:
    api = HfApi()
    assert api.whoami()["name"] == "someone"
    api.create_repo("someone/x", private=True)
    api.create_repo("someone/x", private=True, exist_ok=True)
    assert hub.repos["someone/x"].private
    first = api.create_commit("someone/x", operations(), commit_message="first").oid
    api.create_tag("someone/x", tag="v1")
    second = api.create_commit(
        "someone/x", [CommitOperationDelete("b/c.json")], commit_message="second", parent_commit=first
    ).oid
    assert hub.history("someone/x") == 2 and api.repo_info("someone/x").sha == second
    folder = Path(snapshot_download("someone/x", revision="v1"))
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert sorted(api.list_repo_files("someone/x")) == ["README.md", "a.safetensors"]
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("someone/x", operations({"d": b"1"}), commit_message="late", parent_commit=first)
    request = api.create_commit("someone/x", operations({"d": b"1"}), commit_message="please", create_pr=True)
    assert request.pr_num == 1 and "d" not in hub.files("someone/x") and hub.files("someone/x", "refs/pr/1")["d"]
    assert [found.title for found in api.get_repo_discussions("someone/x")] == ["please"]
    refs = api.list_repo_refs("someone/x", include_pull_requests=True)
    assert [ref.target_commit for ref in refs.tags] == [first]


def test_the_same_commits_have_the_same_ids() -> None:
    oids = []
    for _ in range(2):
        with LocalHub() as hub:
            api = HfApi(endpoint=hub.endpoint, token=TOKEN)
            with pytest.MonkeyPatch.context() as patch:
                hub.use_here(patch, Path("unused"))
                api.create_repo("someone/x")
                oids.append(api.create_commit("someone/x", operations(), commit_message="first").oid)
    assert oids[0] == oids[1]


def test_what_is_missing_private_or_gated(hub: LocalHub) -> None:
    hub.add("someone/secret", FILES, private=True)
    hub.add("someone/gated", FILES).gated = True
    stranger = HfApi(token=False)
    with pytest.raises(RepositoryNotFoundError):
        HfApi().repo_info("someone/nothing")
    with pytest.raises(RepositoryNotFoundError):
        stranger.repo_info("someone/secret")
    with pytest.raises(GatedRepoError):
        stranger.repo_info("someone/gated")
    with pytest.raises(RevisionNotFoundError):
        HfApi().repo_info("someone/gated", revision="v9")
    with pytest.raises(EntryNotFoundError):
        HfApi().hf_hub_download("someone/gated", "nothing.json")
    with pytest.raises(HfHubHTTPError, match="401"):
        stranger.create_commit("someone/gated", operations(), commit_message="no")


@pytest.mark.parametrize("what", [500, 413, "reset", "lost"])
def test_a_planted_fault_strikes_where_it_should(hub: LocalHub, what: int | str) -> None:
    hub.add("someone/x", {})
    hub.fail(Fault("POST", "/commit/", what))
    with pytest.raises(Exception) as caught:
        HfApi().create_commit("someone/x", operations(), commit_message="first")
    assert isinstance(caught.value, HfHubHTTPError) == isinstance(what, int)
    assert bool(hub.files("someone/x")) == (what == "lost")
    HfApi().create_commit("someone/x", operations(), commit_message="first")
    assert hub.files("someone/x") == FILES


def test_silence_lasts_until_the_client_has_had_enough(hub: LocalHub) -> None:
    from huggingface_hub import get_session

    hub.add("someone/x", {})
    hub.fail(Fault("POST", "/commit/", "silence"))
    get_session().timeout = 0.3
    try:
        with pytest.raises(Exception, match="timed out"):
            HfApi().create_commit("someone/x", operations(), commit_message="first")
    finally:
        get_session().timeout = None
    assert not hub.files("someone/x")
