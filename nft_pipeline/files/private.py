"""Secrets: the type of a value that is one, and what secrets and private addresses look like in a text.

The looks are the second line, to find what is left. The first is that secrets are of the type `Secret`, and that
settings are written by an allow-list (training/settings/public.py). Standard library only.
"""

from __future__ import annotations

import re
from hmac import compare_digest

_NAMED = (
    r"(?:api[_-]?key|access[_-]?key|auth[_-]?token|access[_-]?token|token|secret|password|passwd|authorization|sig)"
)
SECRETS = {
    "a Hugging Face token": r"hf_[A-Za-z0-9]{20,}",
    "an API key": r"sk-[A-Za-z0-9_-]{20,}|\bAIza[A-Za-z0-9_-]{30,}|\bsk_(?:live|test)_[A-Za-z0-9]{16,}",
    "a GitHub token": r"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{20,}",
    "an AWS key": r"AKIA[0-9A-Z]{16}",
    "a Slack token": r"xox[abprs]-[A-Za-z0-9-]{10,}|hooks\.slack\.com/services/[A-Za-z0-9/]+",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a signed token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/@\"'<>]+@[^\s\"'<>]+",
    "a signed address": r"[?&](?:sig|signature|x-(?:amz|goog)-[a-z-]+|(?:access_)?token|(?:api_)?key)=[^\s&\"'<>]+",
    "a secret by its name": rf"(?<![\w-]){_NAMED}[\"']?\s*[:=]\s*[\"']?(?:bearer\s+)?[A-Za-z0-9+/_.~%-]{{8,}}",
    "an account's key": r"\bbearer\s+[A-Za-z0-9+/_.~-]{16,}|\bAccountKey=[A-Za-z0-9+/=]{20,}",
    "an e-mail address": r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b",
    "an address in a private network": r"\b(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2,3}\b",
}
_ANY_CASE = ("a signed address", "a secret by its name", "an account's key", "a password in an address")
_ADDRESSES = ("an e-mail address", "an address in a private network")
HIDDEN = "(secret)"
_PATTERNS = {what: re.compile(text, re.IGNORECASE if what in _ANY_CASE else 0) for what, text in SECRETS.items()}


class Secret:
    """A text that shows itself to those who ask for it and to nobody else: printed, formatted or written it is HIDDEN.

    Args:
        text: the secret; another `Secret` is taken over.
    """

    __slots__ = ("_reveal",)

    def __init__(self, text: str | Secret) -> None:
        value = text.reveal() if isinstance(text, Secret) else text
        self._reveal = lambda: value  # not an attribute, which vars() and debuggers would show

    def reveal(self) -> str:
        """The secret itself, to be used and not to be kept."""
        return self._reveal()

    def __repr__(self) -> str:
        return HIDDEN

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and compare_digest(self.reveal().encode(), other.reveal().encode())

    def __hash__(self) -> int:
        return hash(HIDDEN)

    def __reduce__(self) -> str:
        raise TypeError("a secret is not written into files; reveal() gives it to what needs it")

    def __deepcopy__(self, memo: object) -> Secret:
        return self


def secrets_in(text: str) -> dict[str, str]:
    """What was found first of each kind, by the kind in words."""
    return {what: match.group() for what, pattern in _PATTERNS.items() if (match := pattern.search(text))}


def without_secrets(text: str, addresses: bool = True) -> str:
    """The text with "(removed)" in the place of everything that looks like a secret.

    Args:
        text: any.
        addresses: also where it is not a secret but private: e-mail addresses, and addresses in a private network.
    """
    for what, pattern in _PATTERNS.items():
        if addresses or what not in _ADDRESSES:
            text = pattern.sub("(removed)", text)
    return text


def without_password(address: str) -> str:
    """An address as errors may show it: without a user, a password and what follows a question mark."""
    return re.sub(r"//[^/@]*@", "//", address).partition("?")[0]
