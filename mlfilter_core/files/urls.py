"""URLs in place of paths: which stores there are, and what a URL of each needs.

A path that was made from a URL stays one: `url_of` gives back the slash that `pathlib` drops. Nothing here reaches a
store.
"""

import difflib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/+(?P<rest>.*)", re.DOTALL)
_SECRETS = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]+:/+)[^/\s'\"]*@|(?<=\S)\?[^\s'\"]*=[^\s'\"]*")


@dataclass(frozen=True)
class Store:
    """A kind of store.

    Attributes:
        module: Module that opens it.
        extra: Extra of this package that installs the module; None for a module that is always there.
        is_written: Whether outputs can be put there, each at once and whole.
    """

    module: str
    extra: str | None
    is_written: bool


STORES = {
    "s3": Store("s3fs", "s3", True),
    "gs": Store("gcsfs", "gs", True),
    "az": Store("adlfs", "az", True),
    "hf": Store("huggingface_hub", None, False),
    "https": Store("aiohttp", "http", False),
    "http": Store("aiohttp", "http", False),
}


def url_of(path: Path | str) -> str | None:
    """Returns the URL that a path was made from, without a slash at the end; None for a path of this machine.

    Example: `Path("s3://bucket/corpus/")` is `s3:/bucket/corpus` to pathlib, and gives `s3://bucket/corpus`.
    """
    found = _URL.fullmatch(str(path))
    return None if found is None else f"{found['scheme'].lower()}://{found['rest'].rstrip('/')}"


def check_url(url: str, is_written: bool) -> None:
    """Checks that a URL can be read here, or written to; reaches no store.

    Args:
        url: Result of `url_of`.
        is_written: Whether outputs go there.

    Raises:
        ValueError: Its scheme is unknown or only read, it contains credentials, or a package is missing.
    """
    scheme, _, rest = url.partition("://")
    store = STORES.get(scheme)
    if store is None:
        close = difflib.get_close_matches(scheme, STORES, 1, 0.5)
        near = f"; did you mean {close[0]}://?" if close else ""
        raise ValueError(f"{scheme}:// is no store that is known here ({known_schemes()}){near}")
    if not rest.partition("/")[0]:
        raise ValueError(f"names no bucket; write {scheme}://bucket/folder")
    if masked(url) != url or "?" in rest:
        raise ValueError(
            "contains credentials or a query, which would be written to logs and outputs; leave them out, and give "
            "credentials by the environment or by the store's own configuration file"
        )
    if is_written and not store.is_written:
        raise ValueError(
            f"{scheme}:// is only read; write to {known_schemes(is_written=True)} or to a folder of this machine"
        )
    if importlib.util.find_spec(store.module) is None:
        raise ValueError(f"{scheme}:// needs the package {store.module}; run: pip install 'mlfilter[{store.extra}]'")


def shown_path(path: Path) -> str:
    """Returns a path as text, or the URL that it was made from."""
    return url_of(path) or str(path)


def refuse_url(path: Path | str) -> None:
    """Checks that a path is not a URL, for which a folder of that name would be made here.

    Raises:
        ValueError: It is a URL.
    """
    if url_of(path) is not None:
        raise ValueError("is a URL, which is not taken here; give a path of this machine")


def known_schemes(is_written: bool = False) -> str:
    """Returns the schemes that are read, or written to, as text: `s3://, gs://`."""
    return ", ".join(f"{scheme}://" for scheme, store in STORES.items() if store.is_written or not is_written)


def masked(text: str) -> str:
    """Returns a text with the credentials in its URLs replaced: `s3://***@bucket`, `https://host/x?***`."""
    return _SECRETS.sub(lambda found: f"{found['scheme']}***@" if found["scheme"] else "?***", text)
