"""Which files below a corpus folder are outputs of jobs, which must not become sources.

Knows nothing about the content of files.
"""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

# Folders that jobs make in their output_dir. Outputs of annotations and filters keep their provenance beside them, and
# so do exports, whose folders have any name.
WITH_PROVENANCE = ("annotated_data", "filtered", "dropped")
OUTPUT_FOLDERS = (*WITH_PROVENANCE, "clusters", "duplicates", "deduplicated", "rejected", "heads", "logs", "report")
PROVENANCE_FOLDER = ".provenance"  # beside the outputs
OWN_FOLDER = ".mlfilter"  # beside the folders of outputs, where files are staged from or put to a store
ARE_OUTPUTS = "are outputs of jobs"


def outputs_below(folder: Path, output_dir: Path) -> Callable[[str], str | None]:
    """Returns a function that tells why a path below the folder of a corpus is not a source, None if it may be one.

    All that lies in the job's own `output_dir` is an output, and so are the folders of other jobs' outputs. Where the
    folder is itself in an output folder, such as `filtered/`, its files are what the job asks for.

    Args:
        folder: Folder of the corpus.
        output_dir: Output folder of the job.
    """
    root, own = folder.resolve(), output_dir.resolve()
    own_below = f"{own.relative_to(root).as_posix()}/" if own != root and own.is_relative_to(root) else ""

    @functools.cache
    def holds_outputs(parent: str) -> bool:
        """Whether a folder, relative to that of the corpus, is the output folder of a job."""
        path = root / parent
        return path == own or (
            any((path / name / PROVENANCE_FOLDER).is_dir() for name in WITH_PROVENANCE)
            or any(path.glob("logs/*/run.json"))
        )

    @functools.cache
    def has_provenance(inner: str) -> bool:
        return (root / inner / PROVENANCE_FOLDER).is_dir()

    return _reason(own_below, holds_outputs, has_provenance)


def outputs_listed(url: str, output_url: str, names: Iterable[str]) -> Callable[[str], str | None]:
    """Returns the same function for a corpus in a store.

    Args:
        url: URL of the corpus.
        output_url: URL of the job's outputs, or their folder.
        names: Paths of all files below the URL of the corpus.
    """
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    own_below = f"{output_url.removeprefix(url).lstrip('/')}/" if output_url.startswith(f"{url}/") else ""

    def holds_outputs(parent: str) -> bool:
        marks = (OWN_FOLDER, *(f"{name}/{PROVENANCE_FOLDER}" for name in WITH_PROVENANCE))
        is_own = parent == "." and output_url == url
        return is_own or any(str(PurePosixPath(parent, mark)) in folders for mark in marks)

    def has_provenance(inner: str) -> bool:
        return str(PurePosixPath(inner, PROVENANCE_FOLDER)) in folders

    return _reason(own_below, holds_outputs, has_provenance)


def _reason(
    own_below: str, holds_outputs: Callable[[str], bool], has_provenance: Callable[[str], bool]
) -> Callable[[str], str | None]:
    @functools.cache
    def are_outputs(parent: str) -> bool:
        """Whether the files of a folder, relative to that of the corpus, are outputs."""
        names = PurePosixPath(parent).parts
        return any(
            has_provenance(str(PurePosixPath(*names[: i + 1])))
            or (name in OUTPUT_FOLDERS and holds_outputs(str(PurePosixPath(*names[:i]))))
            for i, name in enumerate(names)
        )

    def reason(relative: str) -> str | None:
        is_own = bool(own_below) and relative.startswith(own_below)
        return ARE_OUTPUTS if is_own or are_outputs(relative.rpartition("/")[0]) else None

    return reason
