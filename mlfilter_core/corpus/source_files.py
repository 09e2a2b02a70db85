"""Names of source files."""

import os
from fnmatch import fnmatchcase
from pathlib import Path

from mlfilter_core.errors import ConfigError

SOURCE_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.zstd")


def find_jsonl(folder: Path, *stems: str) -> list[Path]:
    """Returns the files below a folder whose names without `SOURCE_SUFFIXES` match a pattern, sorted by path.

    Hidden files and folders are left out, as runs keep their own files there.

    Raises:
        ConfigError: The folder, or one below it, is missing or not readable, or a name is not UTF-8.
    """

    def refuse(error: OSError) -> None:
        raise ConfigError(f"the folder {error.filename} cannot be read ({error.strerror}); fix its path or permissions")

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent) / name for name in names if name.endswith(SOURCE_SUFFIXES) and not name.startswith(".")]
        found += [path for path in paths if any(fnmatchcase(stem_of(path), pattern) for pattern in stems)]
    for path in found:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raw = str(path).encode(errors="surrogateescape")
            raise ConfigError(f"the name of {raw!r} is not UTF-8; rename it, for example with convmv") from None
    return sorted(found)


def stem_of(path: Path) -> str:
    """Returns a file's name without `SOURCE_SUFFIXES`: `x` for `a/x.jsonl.gz`."""
    suffix = next((suffix for suffix in SOURCE_SUFFIXES if path.name.endswith(suffix)), path.suffix)
    return path.name.removesuffix(suffix)
