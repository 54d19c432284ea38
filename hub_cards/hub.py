"""What the Hub answered, as an error in one sentence, and how long to wait before it is asked again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from nft_pipeline.adapter import AdapterError
from nft_pipeline.adapters.fetch import NO_ANSWER, is_network_error, is_no_answer

# Answers that may change in a moment. 409 and 412 mean that somebody else, or a request of ours whose answer was lost,
# has changed the repository: look at it again.
TRANSIENT = (408, 409, 412, 425, 429, 500, 502, 503, 504)


class HubError(AdapterError):
    """The Hub did not do what was asked; `what`, `faults` and `advice` are as in AdapterError."""


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Within this context a Hub that is silent for so many seconds counts as gone; its client would wait for ever."""
    from huggingface_hub import get_session

    session = get_session()
    before, session.timeout = session.timeout, seconds
    try:
        yield
    finally:
        session.timeout = before


def status_of(error: BaseException) -> int | None:
    """The HTTP status an error of the Hub's client comes from; None if no answer came."""
    seen: BaseException | None = error
    while seen is not None:  # an upload's error comes wrapped
        response = getattr(seen, "response", None)
        if response is not None:
            return int(response.status_code)
        seen = seen.__cause__
    return None


def is_transient(error: BaseException) -> bool:
    """May the same request succeed in a moment?"""
    status = status_of(error)
    return status in TRANSIENT if status is not None else is_network_error(error)


def explain(error: BaseException, doing: str, repo: str) -> HubError:
    """The error as a person needs it.

    Args:
        error: an error of huggingface_hub.
        doing: what was asked for, such as "the adapter was not pushed to someone/red".
        repo: the repository.
    """
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RevisionNotFoundError

    status = status_of(error)
    login = "Log in with `hf auth login`, with a token that may write."
    if isinstance(error, GatedRepoError):
        what, advice = "the repository is gated", f"Accept its terms on https://huggingface.co/{repo} and log in."
    elif isinstance(error, RevisionNotFoundError):
        what, advice = "there is no such revision", "Give a branch, tag or commit that its page lists."
    elif isinstance(error, OfflineModeIsEnabled):
        what, advice = "the Hub is switched off (HF_HUB_OFFLINE is set)", "Unset HF_HUB_OFFLINE and try again."
    elif status == 401:
        what, advice = "the Hub does not know who you are (401)", login
    elif status == 403:
        what = "your token may not do that there (403)"
        advice = f"{login} In somebody else's repository open a pull request (create_pr=True, --pr)."
    elif status == 404:
        what, advice = "there is no such repository, or you may not see it (404)", f"Check the spelling. {login}"
    elif status == 413:
        what, advice = "a file is too large for the Hub (413)", "Leave out pictures, or make them smaller."
    elif status in (409, 412):
        what, advice = f"the repository kept changing meanwhile ({status})", "Wait until the other push is done."
    elif status is not None:
        what, advice = f"the Hub answered with error {status}", "Try again; what was uploaded is kept."
    elif is_network_error(error):
        what = f"the connection failed ({type(error).__name__})"
        advice = "Try again; what was uploaded is kept, and nothing is published by halves."
    elif is_no_answer(error):
        what, advice = NO_ANSWER
    else:
        what, advice = f"the Hub's client says: {error}", "Try again, or update huggingface_hub."
    return HubError(doing, [what], advice)
