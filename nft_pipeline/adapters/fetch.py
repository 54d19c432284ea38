"""An adapter's files from the Hub: fetched into the local cache, and every way in which that fails said in words."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import AdapterError
from .names import MAX_HEAD_BYTES, MAX_JSON_BYTES, MAX_LORA_BYTES, MAX_PICTURE_BYTES, MAX_REPOSITORY_BYTES

HUB_PATTERNS = ("*.safetensors", "*.json", "*.md", "*.png")
_TRIES = 3


def fetch(repo: str, revision: str | None, inner: str, access: Mapping[str, Any]) -> Path:
    """The folder of a repository's snapshot in the local Hub cache.

    Args:
        repo: its id.
        revision: branch, tag or commit; None is its default.
        inner: the folder in it that is wanted, or "".
        access: token, cache_dir and local_files_only of the Hub's client.

    Raises:
        AdapterError: it cannot be had, or it is too large for an adapter.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = [f"{inner}/{pattern}" if inner else pattern for pattern in HUB_PATTERNS]
    what = f'the adapter "{repo}" is no folder here and could not be fetched from the Hub'
    if not access.get("local_files_only"):
        _refuse_huge(repo, revision, patterns, access.get("token"))
    where: dict[str, Any] = {"revision": revision, "allow_patterns": patterns, **access}
    try:
        for _ in range(_TRIES - 1):
            try:
                return Path(snapshot_download(repo, **where))
            except Exception as error:  # the client tries again to reach the Hub, but not when a file breaks off
                if not is_network_error(error):
                    raise
        return Path(snapshot_download(repo, **where))
    except GatedRepoError as error:
        fault = "the repository is gated"
        advice = f"Accept its terms on https://huggingface.co/{repo} and log in with `hf auth login`."
        cause: Exception = error
    except RepositoryNotFoundError as error:
        fault = "there is no such repository, or it is private"
        advice = "Check the spelling; for a private one log in with `hf auth login`. A folder must exist as written."
        cause = error
    except RevisionNotFoundError as error:
        fault = f"the repository has no revision {revision!r}"
        advice = "Give a branch, tag or commit that its page lists, or leave revision out."
        cause = error
    except LocalEntryNotFoundError as error:
        answer = error.__cause__
        if isinstance(answer, HfHubHTTPError):
            reason = f"the Hub answered with error {answer.response.status_code}"
        elif access.get("local_files_only"):
            reason = "local_files_only was given"
        else:
            reason = "the Hub cannot be reached (or HF_HUB_OFFLINE is set)"
        fault = f"{reason} and there is no whole copy in the local cache"
        advice = "Try again, online, to fetch it once, or give a folder."
        cause = error
    except Exception as error:
        if is_no_answer(error):
            fault, advice = NO_ANSWER
        elif isinstance(error, HfHubHTTPError | OSError) or is_network_error(error):
            fault = f"the download failed: {str(error) or type(error).__name__}"
            advice = "Try again; what was fetched is kept."
        else:
            raise
        cause = error
    raise AdapterError(what, [fault], advice) from cause


def is_network_error(error: BaseException) -> bool:
    """Whether the connection to the Hub failed, whatever error its client raised. False while HF_HUB_OFFLINE is set."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, HfHubHTTPError | LocalEntryNotFoundError | OfflineModeIsEnabled):
            return False  # an answer, or one that is final
        # The HTTP library under the client has changed its name between versions, and all its errors are of this kind.
        if isinstance(seen, ConnectionError | TimeoutError) or type(seen).__module__.startswith("httpx"):
            return True
        seen = seen.__cause__
    return False


# What to say, and what to do, where something other than the Hub has answered.
NO_ANSWER = (
    "what answered is not the Hub, or its answer was cut off: it is no JSON, or other JSON than the Hub's",
    "A network that asks you to log in, or a proxy, answers like that. Open https://huggingface.co in a browser, then "
    "try again.",
)


def is_no_answer(error: BaseException) -> bool:
    """Whether the Hub's client stumbled over an answer that the Hub does not give, such as a page of HTML."""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(error, ValueError | LookupError | TypeError | AttributeError) and not isinstance(
        error, HfHubHTTPError | OSError
    )


def _refuse_huge(repo: str, revision: str | None, patterns: list[str], token: str | bool | None) -> None:
    """Raise before a download that no adapter needs: a whole model, or a repository made to fill disks.

    If the Hub does not answer, nothing is raised here: the download itself then reports it, or takes the cached copy.
    """
    from huggingface_hub import HfApi

    try:
        files = HfApi(token=token).model_info(repo, revision=revision, files_metadata=True, timeout=30).siblings or []
    except Exception:  # of the network, of the Hub, of its client: see above
        return
    sizes = {file.rfilename: file.size or 0 for file in files}
    wanted = [name for name in sizes if any(fnmatch(name, pattern) for pattern in patterns)]
    limits = {".json": MAX_JSON_BYTES, ".safetensors": MAX_LORA_BYTES + MAX_HEAD_BYTES}
    faults = [
        f"{name} is {sizes[name]:,} bytes long, at most {limit:,} are read"
        for name in wanted
        if sizes[name] > (limit := limits.get(PurePosixPath(name).suffix, MAX_PICTURE_BYTES))
    ]
    total = sum(sizes[name] for name in wanted)
    if total > MAX_REPOSITORY_BYTES:
        faults.append(f"together they are {total:,} bytes, at most {MAX_REPOSITORY_BYTES:,} are fetched")
    if faults:
        raise AdapterError(
            f'the adapter "{repo}" was not fetched from the Hub: it is too large for an adapter',
            faults,
            "Give subfolder= if the adapter is a small part of the repository, or download yourself what you trust.",
        )
