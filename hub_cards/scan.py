"""Finds what must not be uploaded: local paths, the name of the person's account on this machine, and tokens.

It searches texts, the headers of safetensors files, and the texts inside PNGs (ComfyUI and others write whole workflows
there). It does not search tensors and pixels.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path

from nft_pipeline.errors import AdapterError
from nft_pipeline.files.private import secrets_in
from nft_pipeline.files.strict import header_texts

from .contents import MAX_PIXELS, png_pixels

# After a letter, a digit, a dot or another slash it is part of an address or of a relative path.
_LOCAL_PATH = re.compile(
    r"(?<![\w./])(?:/(?:home|root|Users|mnt|media|tmp|var|opt|srv|scratch|workspace|work|content|kaggle|private|data)/"
    r"[^\s\"'<>|)]+|[A-Za-z]:\\{1,2}[^\s\"'<>|)]+|~/[\w.-]+|file://[^\s\"'<>|)]+)"
)
_COMMON_ACCOUNTS = {"root", "user", "admin", "ubuntu", "runner", "home", "work", "test", "model", "train", "nobody"}


def private_faults(files: Mapping[str, bytes], owner: str | None = None) -> list[tuple[str, str]]:
    """Everything private in the files, as (file, what it holds); the text of a token is not repeated.

    Args:
        files: contents by path.
        owner: the owner of the repository, whose name is no secret there.
    """
    accounts = _accounts() - {owner}
    faults = []
    for path, data in sorted(files.items()):
        text = "\n".join(texts_of(path, data))
        faults += [(path, f"holds {what} ({secret[:4]}...)") for what, secret in secrets_in(text).items()]
        for found in dict.fromkeys(_LOCAL_PATH.findall(text)):
            faults.append((path, f"holds the local path {found[:120]}"))
        for name in sorted(accounts):
            # Before a slash it is the owner of a repository, or in a path, which is found above.
            if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w/-])", text):
                faults.append((path, f"holds the name of your account on this machine, {name}"))
    return faults


def _accounts() -> set[str]:
    """Names of the person's account that tell who it is."""
    try:
        names = {getpass.getuser(), Path.home().name}
    except (OSError, KeyError, RuntimeError):  # an account without a name, as in some containers
        return set()
    return {name for name in names if len(name) > 2 and name.lower() not in _COMMON_ACCOUNTS}


def texts_of(path: str, data: bytes) -> Iterator[str]:
    """What a file says in words."""
    if path.endswith(".safetensors"):
        try:
            header = header_texts(data, path)
        except AdapterError:  # damaged; that is for others to say
            return
        yield from (f"{key}: {value}" for key, value in header.items())
    elif path.endswith(".png"):
        from PIL import Image

        if png_pixels(data) > MAX_PIXELS:  # that is for others to say, too
            return
        try:
            with Image.open(BytesIO(data), formats=["PNG"]) as picture:
                picture.load()
                yield from (f"{key}: {value}" for key, value in picture.info.items() if isinstance(value, str))
                yield from (str(value) for value in picture.getexif().values())
        except (OSError, ValueError, SyntaxError):  # no picture; that is for others to say
            return
    else:
        yield data.decode("utf-8", "replace")
