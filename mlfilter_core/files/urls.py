"""URLs in place of paths.

A path that was made from a URL stays one: `url_of` gives back the slash that `pathlib` drops. Nothing here reaches a
store.
"""

import re
from pathlib import Path

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/+(?P<rest>.*)", re.DOTALL)
_SECRETS = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]+:/+)[^/\s'\"]*@|(?<=\S)\?[^\s'\"]*=[^\s'\"]*")


def url_of(path: Path | str) -> str | None:
    """Returns the URL that a path was made from, without a slash at the end; None for a path of this machine.

    Example: `Path("s3://bucket/corpus/")` is `s3:/bucket/corpus` to pathlib, and gives `s3://bucket/corpus`.
    """
    found = _URL.fullmatch(str(path))
    return None if found is None else f"{found['scheme'].lower()}://{found['rest'].rstrip('/')}"


def refuse_url(path: Path | str) -> None:
    """Checks that a path is not a URL, for which a folder of that name would be made here.

    Raises:
        ValueError: It is a URL.
    """
    if url_of(path) is not None:
        raise ValueError("is a URL, which is not taken here; give a path of this machine")


def masked(text: str) -> str:
    """Returns a text with the credentials in its URLs replaced: `s3://***@bucket`, `https://host/x?***`."""
    return _SECRETS.sub(lambda found: f"{found['scheme']}***@" if found["scheme"] else "?***", text)
