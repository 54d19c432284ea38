"""Uploading an adapter: it is checked first and then sent in one commit, whatever breaks on the way.

    push("runs/ocr/adapter", "someone/sd35m-nft-ocr")

With `space=True` the page of `diffusion-nft play` goes up as a Space of the same name afterwards, by the same means.

A commit names its parent, so the Hub refuses a second one that was made from the same state. When an answer gets lost,
the next try looks at what is in the repository; if everything is there, it is done. Large files are uploaded before the
commit and are invisible until it names them, so a push that is cut off anywhere leaves the old state or the new one.
The same push given again ends in the same commit.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nft_pipeline.adapter import AdapterError
from nft_pipeline.adapters.config import AdapterConfig
from nft_pipeline.adapters.names import CONFIG_FILE, comfyui_file
from nft_pipeline.adapters.read import is_hub_id, locate, read_adapter
from nft_pipeline.adapters.write import adapter_files

from .card import Card, render_card
from .contents import folder_sizes, largest, read_texts
from .hub import HubError, explain, is_transient, patience
from .licence import Licence, base_licence, card_licence
from .report import REPORT_FILE, RunReport, read_report
from .scan import private_faults, texts_of
from .space import space_files
from .verify import folder_faults

_COLLECTION_SLUG = re.compile(r"[\w.-]+/[\w.-]+-[0-9a-f]{24}")
_TRIES = 5


@dataclass(frozen=True)
class Package:
    """What a push would upload.

    Args:
        repo_id: the repository.
        files: contents by path.
        card: the card among them.
        repo_type: what the Hub calls this kind of repository, "model" or "space".
    """

    repo_id: str
    files: Mapping[str, bytes]
    card: Card
    repo_type: str = "model"

    def listing(self) -> str:
        """One line per file, for people to read."""
        width = max(map(len, self.files))
        return "\n".join(f"{path:<{width}}  {len(data):>13,} bytes" for path, data in sorted(self.files.items()))

    def texts(self) -> str:
        """Every text that would be public, file by file: also those in the headers of tensor files and in pictures."""
        parts, where = [], dict[str, str]()
        for path, data in sorted(self.files.items(), key=lambda item: item[0].endswith((".safetensors", ".png"))):
            lines = list(texts_of(path, data))
            for text in lines:
                first = where.setdefault(text.partition(": ")[2] if len(lines) > 1 else text, path)
                parts.append(f"--- {path}\n{text if first == path else text.partition(': ')[0] + ': as in ' + first}")
        return "\n\n".join(parts)


@dataclass(frozen=True)
class Pushed:
    """The result: the commit, the repository's address, whether it is private, and the pull request and the Space if
    there is one."""

    commit: str
    url: str
    private: bool
    pull_request: str | None = None
    space: str | None = None


def make_card(folder: str | os.PathLike[str], repo_id: str, *, licence: str | None = None) -> Card:
    """Render the card of an adapter's folder. Nothing is written.

    Args:
        folder: the adapter, or a shipped name.
        repo_id: "owner/name", for the snippets.
        licence: needed if the base model's card and the config do not name one, or contradict each other.

    Raises:
        AdapterError: no adapter there, a faulty run_report.json, or a licence nobody knows.
    """
    config, report, files, licence_of_it = _facts(folder, licence)
    return render_card(
        config,
        report,
        {path: data for path, data in files.items() if path.startswith("samples/")},
        repo_id=repo_id,
        licence=licence_of_it,
    )


def _facts(
    folder: str | os.PathLike[str], licence: str | None
) -> tuple[AdapterConfig, RunReport, dict[str, bytes], Licence]:
    """What an adapter's folder says of it, its own files, and its licence; arguments and errors as `make_card`."""
    where = locate(folder)
    files = read_texts(where, folder_sizes(where))
    if CONFIG_FILE not in files:
        raise AdapterError(f"{where} has no {CONFIG_FILE}, so it is no adapter and can have no card")
    config = AdapterConfig.from_json(files[CONFIG_FILE])
    report = read_report(files.get(REPORT_FILE), config.training)
    missing = [sample.file for sample in report.samples if sample.file not in files]
    if missing:
        raise AdapterError(
            f"{REPORT_FILE} names pictures that are not there", missing, "Put them there, or take them out of it."
        )
    base = config.base_model
    known = base_licence(base.id, base.revision) if licence is None else None
    return config, report, files, card_licence(base.id, config.licence, licence, known)


def make_package(folder: str | os.PathLike[str], repo_id: str, *, licence: str | None = None) -> Package:
    """Everything that a push would upload, fully checked: the folder, the file for ComfyUI if it is missing there, and
    the card. The arguments are those of `make_card`.

    Raises:
        AdapterError: any fault `verify` finds, all of them in one report.
    """
    if not is_hub_id(repo_id):
        raise AdapterError(f'the repository is {repo_id!r}, expected "owner/name", such as "someone/sd35m-nft-ocr"')
    where = locate(folder)
    owner = repo_id.partition("/")[0]
    faults = [str(fault) for fault in folder_faults(where, card=False, owner=owner) if fault.where != "README.md"]
    if faults:
        raise AdapterError(f"{folder} was not pushed; it has faults", faults, "Mend them, then push again.")
    card = make_card(folder, repo_id, licence=licence)
    files = {path: data for path, data in read_texts(where, folder_sizes(where)).items() if not _is_card(path)}
    files = _for_comfyui(where, files) | files | card.files()
    faults = [f"{path}: {what}" for path, what in private_faults(files, owner)]
    if faults:
        raise AdapterError(f"{folder} was not pushed; its card would tell too much", faults)
    return Package(repo_id, files, card)


def _for_comfyui(where: Path, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The one file for ComfyUI of a checked adapter that has none: the package leaves it out of some, for its size."""
    path = comfyui_file(AdapterConfig.from_json(files[CONFIG_FILE]).name)
    return {} if path in files else {path: adapter_files(read_adapter(where))[path]}


def make_space(folder: str | os.PathLike[str], repo_id: str, *, licence: str | None = None) -> Package:
    """Everything that a Space beside the adapter would be; the arguments are those of `make_card`.

    Raises:
        AdapterError: a Space cannot draw with this adapter, or its files would tell too much.
    """
    config, report, _, licence_of_it = _facts(folder, licence)
    card, files = space_files(config, report, repo_id=repo_id, licence=licence_of_it)
    faults = [f"{path}: {what}" for path, what in private_faults(files, repo_id.partition("/")[0])]
    if faults:
        raise AdapterError(f"{folder} was not pushed; its Space would tell too much", faults)
    return Package(repo_id, files, card, "space")


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = True,
    licence: str | None = None,
    revision: str | None = None,
    tag: str | None = None,
    create_pr: bool = False,
    collection: str | None = None,
    message: str | None = None,
    space: bool = False,
    token: str | None = None,
    tries: int = _TRIES,
    pause: float = 1.0,
    timeout: float = 120.0,
) -> Pushed:
    """Put an adapter and its card into a repository on the Hub, in one commit.

    Args:
        folder: the adapter, or a shipped name.
        repo_id: "owner/name"; made if it is not there.
        private: of a repository that is made now; one that is there stays as it is.
        licence: see `make_card`.
        revision: branch, default main; made if it is not there.
        tag: a name for the commit. A tag that is there for another commit is never moved.
        create_pr: open a pull request instead, for repositories of others. An open one with the same title and files
            is found again, not doubled.
        collection: a collection's slug, or the title of one of the owner's; made if it is not there.
        message: the commit's, default "Upload <name> with diffusion-nft".
        space: also put up a Space of the same name, in which people play with the adapter in main; a new one is as
            private as the adapter's repository.
        token: default the one you are logged in with.
        tries: how often to try, in all, where the connection or the Hub fails.
        pause: seconds before the second try, doubled from try to try.
        timeout: seconds of silence after which the Hub counts as gone.

    Returns:
        The commit. If everything was there already, it is the existing one.

    Raises:
        AdapterError: the adapter has faults; nothing was sent.
        HubError: the Hub refused, or failed as often as was tried.
    """
    if create_pr and (revision not in (None, "main") or tag):
        raise AdapterError("a pull request goes to main and cannot be tagged; leave out revision and tag")
    if space and (create_pr or revision not in (None, "main")):
        raise AdapterError("a Space plays with the adapter in main; leave out the pull request and the revision")
    package = make_package(folder, repo_id, licence=licence)
    app = make_space(folder, repo_id, licence=licence) if space else None
    name = AdapterConfig.from_json(package.files[CONFIG_FILE]).name
    message = message or f"Upload {name} with diffusion-nft"
    from huggingface_hub import HfApi

    api = HfApi(token=token)

    def send() -> Pushed:
        pushed = _publish(api, package, private, revision or "main", create_pr, message)
        if tag:
            _tag(api, repo_id, tag, pushed.commit)
        if collection:
            _collect(api, repo_id, collection, pushed.private)
        return pushed

    patient = partial(_patiently, repo=repo_id, tries=tries, pause=pause, timeout=timeout)
    pushed: Pushed = patient(send, doing=f"the adapter was not pushed to {repo_id}")
    if app is None:
        return pushed
    up: Pushed = patient(
        lambda: _publish(api, app, pushed.private, "main", False, message),
        doing=f"the adapter is in {repo_id}, but its Space was not put up",
    )
    return replace(pushed, space=up.url)


def _patiently(
    work: Callable[[], Pushed], *, doing: str, repo: str, tries: int, pause: float, timeout: float
) -> Pushed:
    """Do it, again where the connection or the Hub fails; arguments as `push`, and `doing` for `explain`."""
    for attempt in range(tries):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            with patience(timeout):
                return work()
        except HubError:
            raise
        except Exception as error:
            if attempt + 1 < tries and is_transient(error):
                continue
            raise explain(error, doing, repo) from error
    raise ValueError(f"tries is {tries}, expected at least 1")


def _publish(api: Any, package: Package, private: bool, revision: str, create_pr: bool, message: str) -> Pushed:
    """One try: look at what is in the repository, and commit what differs."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    repo, kind = package.repo_id, package.repo_type
    sdk = {"space_sdk": "gradio"} if kind == "space" else {}
    api.create_repo(repo, repo_type=kind, private=private, exist_ok=True, **sdk)
    if revision != "main":
        api.create_branch(repo, branch=revision, exist_ok=True)
    info = api.repo_info(repo, repo_type=kind, revision=revision)
    changed, stale = _difference(package, _held(api, package, info.sha))
    url = f"{api.endpoint}/{'spaces/' if kind == 'space' else ''}{repo}"
    if not changed and not stale:
        return Pushed(info.sha, url, bool(info.private))
    if create_pr and (found := _open_request(api, package, message)):
        return Pushed(found[0], url, bool(info.private), found[1])
    operations: list[Any] = [CommitOperationAdd(path, package.files[path]) for path in changed]
    operations += [CommitOperationDelete(path) for path in stale]
    done = api.create_commit(
        repo,
        operations,
        repo_type=kind,
        commit_message=message,
        revision=revision,
        parent_commit=info.sha,
        create_pr=create_pr,
    )
    return Pushed(done.oid, url, bool(info.private), done.pr_url)


def _held(api: Any, package: Package, revision: str) -> dict[str, str]:
    """What a revision of the repository holds: sha256 of files in LFS, git's own id of the others, by path."""
    from huggingface_hub.hf_api import RepoFile

    where = {"repo_type": package.repo_type, "revision": revision}
    entries = api.list_repo_tree(package.repo_id, recursive=True, **where)
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}


def _difference(package: Package, held: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Files to add or change, and files of an adapter that was there before and is no more."""
    changed = [path for path, data in sorted(package.files.items()) if held.get(path) not in file_ids(data)]
    if package.repo_type != "model":
        return changed, []
    return changed, sorted(path for path in held if largest(path) is not None and path not in package.files)


def file_ids(data: bytes) -> tuple[str, str]:
    """What the Hub calls a file: sha256 if it is in LFS, git's blob id if not."""
    return hashlib.sha256(data).hexdigest(), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _open_request(api: Any, package: Package, title: str) -> tuple[str, str] | None:
    """Commit and address of an open pull request that brings the same files."""
    found = api.get_repo_discussions(package.repo_id, discussion_type="pull_request", discussion_status="open")
    for request in found:
        if request.title == title and request.is_pull_request:
            ref = f"refs/pr/{request.num}"
            if _difference(package, _held(api, package, ref)) == ([], []):
                return api.repo_info(package.repo_id, revision=ref).sha, request.url
    return None


def _tag(api: Any, repo: str, tag: str, commit: str) -> None:
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        there = api.repo_info(repo, revision=tag).sha
    except RevisionNotFoundError:
        api.create_tag(repo, tag=tag, revision=commit)
        return
    if there != commit:
        raise HubError(
            f"the adapter is in {repo}, but was not tagged",
            [f"the tag {tag} is there already, for the commit {there[:10]}, and this one is {commit[:10]}"],
            "Give another tag. People who use the old one would get something else if it moved.",
        )


def _collect(api: Any, repo: str, collection: str, private: bool) -> None:
    slug = collection
    if not _COLLECTION_SLUG.fullmatch(collection):
        owner = repo.partition("/")[0]
        slug = api.create_collection(collection, namespace=owner, private=private, exists_ok=True).slug
    api.add_collection_item(slug, repo, "model", exists_ok=True)


def _is_card(path: str) -> bool:
    """Is this made anew by every card?"""
    return path == "README.md" or path.startswith("plots/")


def write_card(folder: str | os.PathLike[str], card: Card) -> Path:
    """Put a card into an adapter's folder, replacing the one that is there; its README.md comes last.

    Returns:
        The README.md.
    """
    from nft_pipeline.files.atomic import atomic_write_bytes

    files = card.files()
    for path in sorted(files, key=lambda path: path == "README.md"):
        written = atomic_write_bytes(Path(folder) / path, files[path])
    return written
