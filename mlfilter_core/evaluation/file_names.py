"""What stands for an annotator or a language in the names of files."""

from pathlib import Path

from mlfilter_core.errors import AnnotationError

# A name of a file has 255 bytes at most; what stands around an annotator in those of outputs has 30.
MAX_NAME_BYTES = 200


def in_file_names(text: str) -> str:
    """Returns a name without slashes, as ML-Filter writes it: `meta-llama__Llama-3` for `meta-llama/Llama-3`."""
    return text.replace("/", "__")


def check_file_name(what: str, name: str, made_from: Path) -> None:
    """Checks that a name can be that of a folder, or a part of that of a file.

    Raises:
        AnnotationError: It cannot; names the file that it is from.
    """
    if name in ("", ".", "..") or "\0" in name or len(name.encode()) > MAX_NAME_BYTES:
        shown = name[:MAX_NAME_BYTES].replace("\0", "\\0")
        raise AnnotationError(f'{made_from}: the {what} "{shown}" cannot be the name of a file; change it there')
