"""The facts about the outputs of one kind of job that verification and report need.

`mlfilter_core.job_kinds` names an `OutputKind` for each kind of job that writes to its own `output_dir`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mlfilter_core.job_kinds import kinds, load_entry_point
from mlfilter_core.verification.discrepancies import FileCheck, Place
from mlfilter_core.verification.stated_facts import StatedFacts


@dataclass(frozen=True)
class VerifyRequest:
    """The request of a verification, for every check.

    Attributes:
        output_dir: Output folder of a job.
        group: Name of the HDF5 group.
        source_dir: Folder of the sources now; None takes the folder that they were embedded from.
        read_content: Whether to read the files; if not, only the metadata that they state are checked.
    """

    output_dir: Path
    group: str = "train"
    source_dir: Path | None = None
    read_content: bool = True


@dataclass(frozen=True)
class Output:
    """A file that a job wrote.

    Attributes:
        path: Its place, relative to the output folder.
        name: Path without folder of the kind and without suffix: `a/x` for `annotated_data/a/x.jsonl.gz`. All outputs
            that come from one source end with the same name.
    """

    path: str
    name: str


@dataclass(frozen=True)
class RelatedFiles:
    """Files that an output may have been made from, by their names; paths relative to the output folder.

    Attributes:
        outputs: Outputs of the kinds before it, such as the embeddings of an annotated file.
        rejects: Rejects files that no other output claims.
        has_unkept: Whether embeddings in this folder were removed after use, so that their rejects must be here.
    """

    outputs: tuple[str, ...] = ()
    rejects: tuple[str, ...] = ()
    has_unkept: bool = False


class TogetherCheck(Protocol):
    """A check of all outputs of a kind together, which are added one by one; holds sums over them."""

    def add(self, place: Place) -> None:
        """Adds an output."""

    def problems(self) -> Iterable[str]:
        """Yields problems that only all of them show, after the last one."""


@dataclass(frozen=True)
class OutputKind:
    """The outputs of one kind of job. Worker processes call `check`: it is a function of a module's top level.

    Attributes:
        plural: Words for several of them: `files of embeddings`.
        find: Takes the path of any file, relative to the output folder. Returns the output that the file is or belongs
            to, None for files of other kinds.
        read: Takes an output's path. Returns what the output states, from its metadata alone; raises
            UnreadableOutputError.
        check: Takes an output's path. Checks its content; never raises for what is wrong with it.
        made_from: Flow of the kind whose outputs these are made from, one from each; None where there is none.
        again: Advice where an output is missing, or was made with other settings: `annotate again`.
        check_together: Returns a new check of all outputs together; None where single ones show all problems.
        evidence: Takes an output's path. Returns the files that `read` reads: where none of them has changed, it states
            the same. None where every report must read the output.
    """

    plural: str
    find: Callable[[str], Output | None]
    read: Callable[[str, VerifyRequest], StatedFacts]
    check: Callable[[str, VerifyRequest, RelatedFiles], FileCheck]
    made_from: str | None = None
    again: str = "make them again"
    check_together: Callable[[VerifyRequest], TogetherCheck] | None = None
    evidence: Callable[[str], Sequence[str]] | None = None


def without_suffix(name: str, suffixes: tuple[str, ...]) -> str:
    """Returns a name without its suffix, which is one of the given ones."""
    return next((name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix)), name)


def output_kinds() -> dict[str, OutputKind]:
    """Returns the outputs of each kind of job that writes to its own `output_dir`, by the kind's flow."""
    return {kind.flow: load_entry_point(kind.outputs) for kind in kinds() if kind.outputs is not None}
