"""Getting an adapter from the Hub into a folder of one's own: checked, and byte for byte what was uploaded.

    pull("someone/sd35m-nft-ocr", "adapters/ocr")

No folder is needed to draw with an adapter: `nft_adapter="someone/sd35m-nft-ocr"` fetches it into the Hub's cache.
Offline, both take what is in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nft_pipeline.adapter import AdapterError, read_adapter
from nft_pipeline.adapters.fetch import is_network_error
from nft_pipeline.adapters.read import is_hub_id, locate
from nft_pipeline.adapters.write import check_replaceable
from nft_pipeline.files.atomic import atomic_folder, recover

from .contents import folder_sizes, largest
from .hub import explain
from .push import file_ids


def pull(
    repo_id: str, folder: str | os.PathLike[str], *, revision: str | None = None, subfolder: str | None = None
) -> Path:
    """Fetch an adapter and put it into `folder`, replacing an older adapter whole.

    Args:
        repo_id: "owner/name".
        folder: a new or empty folder, or an adapter's.
        revision: branch, tag or commit.
        subfolder: folder of the repository that holds the adapter.

    Returns:
        The folder.

    Raises:
        AdapterError: no such repository or revision, gated, offline and not in the cache (see `read_adapter`); a file
            that is not what the Hub says it is; an adapter with faults; or a folder that holds other things.
    """
    if not is_hub_id(repo_id):
        raise AdapterError(f'the repository is {repo_id!r}, expected "owner/name"')
    if Path(repo_id).is_dir():
        raise AdapterError(
            f"{repo_id} is a folder here, which is looked at before the Hub", advice="Pull from another working folder."
        )
    target = Path(folder)
    source = locate(repo_id, revision=revision, subfolder=subfolder)
    files = {path: (source / path).read_bytes() for path in folder_sizes(source) if largest(path) is not None}
    _check_bytes(repo_id, source, files, _listed(repo_id, revision, subfolder))
    read_adapter(source)
    check_replaceable(recover(target), files)
    with atomic_folder(target) as new:
        for path, data in files.items():
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            (new / path).write_bytes(data)
    return target


def _listed(repo: str, revision: str | None, subfolder: str | None) -> dict[str, str]:
    """The hash of every file as the Hub lists it, by path in the subfolder; empty where it cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.hf_api import RepoFile

    inner = f"{subfolder.strip('/')}/" if subfolder else ""
    try:
        entries: list[Any] = list(HfApi().list_repo_tree(repo, recursive=True, revision=revision))
    except OfflineModeIsEnabled:
        return {}
    except Exception as error:
        if is_network_error(error):  # the cache may do; what it holds was checked by nobody, but is read strictly
            return {}
        raise explain(error, f"the adapter was not pulled from {repo}", repo) from error
    files = [entry for entry in entries if isinstance(entry, RepoFile) and entry.path.startswith(inner)]
    return {file.path.removeprefix(inner): file.lfs.sha256 if file.lfs else file.blob_id for file in files}


def _check_bytes(repo: str, cache: Path, files: Mapping[str, bytes], listed: Mapping[str, str]) -> None:
    wrong = [path for path, data in files.items() if path in listed and listed[path] not in file_ids(data)]
    if wrong:
        raise AdapterError(
            f"what was fetched from {repo} is not what the Hub lists",
            [f"{path} has another hash" for path in wrong],
            f"Delete {cache} and pull again: the copy in the cache is damaged, or the repository has just changed.",
        )
