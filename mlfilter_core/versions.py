"""The versions of the libraries that affect the content of a file."""

import functools
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version


@functools.cache
def library_versions() -> Mapping[str, str]:
    """Returns the versions of the libraries that affect a file's content."""
    names = ("mlfilter", "torch", "transformers", "sentence-transformers", "tokenizers", "h5py", "numpy")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
