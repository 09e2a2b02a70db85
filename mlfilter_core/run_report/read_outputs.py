"""The outputs of a folder, read for its report: all of few; of very many, what is known of them and a sample."""

from array import array
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.files.task_files import evenly_spaced
from mlfilter_core.run_report.facts import FileFacts
from mlfilter_core.run_report.file_rows import RecordedFiles
from mlfilter_core.run_report.known_outputs import MOST_SAMPLED, KnownOutputs, read_output
from mlfilter_core.run_report.limit_examples import files_with_examples
from mlfilter_core.run_report.output_totals import OutputTotals
from mlfilter_core.verification.output_kinds import OutputKind, VerifyRequest, output_kinds
from mlfilter_core.verification.outputs import Outputs
from mlfilter_core.verification.stated_facts import StatedFacts, UnreadableOutputError
from mlfilter_core.verification.verify import find_outputs
from mlfilter_core.wording import plural
from mlfilter_core.work.run_log import writable
from mlfilter_core.work.stored_reports import StoredReports

# To open an output takes some 4 ms, so that these take 40 s; arbitrary. Of a folder with more outputs, statistics of
# scores and lengths are those of the sample.
MOST_READ = 10_000
ON_DISK = "on disk"


class TooManyToOpenError(Exception):
    """More outputs would have to be opened than the caller allows.

    Attributes:
        of: Number of all outputs.
    """

    def __init__(self, of: int) -> None:
        super().__init__(of)
        self.of = of


@dataclass
class FoundOutputs:
    """What was found in an output folder.

    Attributes:
        totals: Sums over the outputs.
        unrecorded: Rows of outputs that no run recorded, by flow.
        n_unreadable: Number of outputs that cannot be read.
        why_unreadable: Why the first of them cannot be read.
        with_examples: Names of the filtered files that give examples.
        embeddings: Files of embeddings of these names.
    """

    totals: OutputTotals
    unrecorded: dict[str, StoredReports[Any]] = field(default_factory=dict)
    n_unreadable: int = 0
    why_unreadable: str = ""
    with_examples: Sequence[str] = ()
    embeddings: dict[str, str] = field(default_factory=dict)

    def notices(self) -> list[str]:
        """Returns the notices about unreadable outputs."""
        if not self.n_unreadable:
            return []
        verb = "is" if self.n_unreadable == 1 else "are"
        return [f"{plural(self.n_unreadable, 'file')} cannot be read and {verb} left out: {self.why_unreadable}"]

    def add_row(self, row: FileFacts) -> None:
        """Adds the row of an output that no run recorded."""
        rows = self.unrecorded.setdefault(row.flow, StoredReports())
        rows.add(len(rows), row)


def read_outputs(
    request: VerifyRequest, recorded: RecordedFiles, remembers: bool, most_opened: int | None
) -> FoundOutputs:
    """Returns what the outputs of a folder state.

    Args:
        request: The folder, and the group of HDF5 files.
        recorded: The files that runs recorded.
        remembers: Whether to remember what opened outputs of many state.
        most_opened: Largest number of outputs to open beside the sample; None for all.

    Raises:
        ConfigError: There are no outputs.
        TooManyToOpenError: More would have to be opened.
    """
    folder = find_outputs(request.output_dir)
    found = FoundOutputs(OutputTotals(sum(folder.unfinished.values())))
    found.with_examples = files_with_examples(folder.outputs["filter"])
    counted = _Sources()
    with closing(_Reader(request, folder.outputs, remembers, most_opened)) as reader:
        for flow, kind in output_kinds().items():
            outputs = folder.outputs[flow]
            sample, are_recorded = reader.sample_of(outputs), recorded.are_finished(outputs)
            for i, output in enumerate(outputs):
                is_sampled = sample is None or i in sample
                try:
                    stated = reader.read(kind, output.path, is_sampled)
                except UnreadableOutputError as error:
                    found.n_unreadable += 1
                    found.why_unreadable = found.why_unreadable or str(error)
                    continue
                found.totals.add(output.name, stated, counted.have(stated.source), is_sampled)
                counted.add(stated.source)
                if not are_recorded[i]:
                    found.add_row(_row_on_disk(flow, output.path, stated))
                # The same name in another folder: `a/x` of `embeddings/a/x`.
                if flow == "embed" and (name := output.name.partition("/")[2]) in found.with_examples:
                    found.embeddings[name] = output.path
            counted.end_kind()
    return found


class _Reader:
    """Reads outputs, as far as it is not known what they state."""

    def __init__(
        self, request: VerifyRequest, outputs: Mapping[str, Outputs], remembers: bool, most_opened: int | None
    ) -> None:
        self._request = request
        self._n = sum(map(len, outputs.values()))
        self._most = self._n if most_opened is None else most_opened
        self._n_opened = 0
        self._remembers = remembers
        # Few are all read, with their statistics: what is known would not save it.
        self._known = KnownOutputs(request.output_dir, request.group) if self._n > MOST_READ else None
        if self._known is not None:
            n_sampled = sum(min(len(own), MOST_SAMPLED) for own in outputs.values())
            self._check(self._n - n_sampled - len(self._known))

    def sample_of(self, outputs: Outputs) -> set[int] | None:
        """Returns the places of the outputs of a kind whose statistics are read; None for all."""
        if self._known is None or len(outputs) <= MOST_SAMPLED:
            return None
        return set(evenly_spaced(range(len(outputs)), MOST_SAMPLED))

    def read(self, kind: OutputKind, path: str, is_sampled: bool) -> StatedFacts:
        """Returns what an output states; without its statistics, unless it is in the sample.

        Raises:
            UnreadableOutputError: As `OutputKind.read`.
            TooManyToOpenError: It would have to be opened, and is one too many.
        """
        if not is_sampled and self._known is not None:
            if (stated := self._known.find(kind, path)) is not None:
                return stated
            self._n_opened += 1
            self._check(self._n_opened)
        stated, known = read_output(kind, path, self._request)
        if self._known is not None and self._remembers and known is not None and not is_sampled:
            self._known.add(known)
        return stated if is_sampled else stated.without_statistics()

    def close(self) -> None:
        if self._known is not None:
            self._known.close(merges=self._remembers)

    def _check(self, n_opened: int) -> None:
        if n_opened > self._most:
            raise TooManyToOpenError(self._n)


class _Sources:
    """The sources that outputs of earlier kinds were made from, 8 bytes each."""

    def __init__(self) -> None:
        self._of_earlier_kinds: NDArray[np.int64] = np.zeros(0, np.int64)
        self._of_this = array("q")

    def have(self, source: tuple[str, str] | None) -> bool:
        """Returns whether an output of an earlier kind was made from a source."""
        if source is None or not len(self._of_earlier_kinds):
            return False
        wanted = hash(source)
        place = int(np.searchsorted(self._of_earlier_kinds, wanted))
        return place < len(self._of_earlier_kinds) and self._of_earlier_kinds[place] == wanted

    def add(self, source: tuple[str, str] | None) -> None:
        if source is not None:
            self._of_this.append(hash(source))

    def end_kind(self) -> None:
        self._of_earlier_kinds = np.union1d(self._of_earlier_kinds, np.array(self._of_this, np.int64))
        self._of_this = array("q")


def _row_on_disk(flow: str, path: str, stated: StatedFacts) -> FileFacts:
    # The counts of an annotated file are those of the source that was embedded.
    counts = stated.counts if stated.heads is None else {}
    kept = stated.n_rows if stated.filtered is not None else None
    n_documents = int(stated.filtered.report["documents"]) if stated.filtered is not None else stated.n_rows
    rejected, truncated, tokens = (int(counts.get(name, 0)) for name in ("rejected", "truncated", "tokens"))
    path = writable(path)
    return FileFacts(path, flow, "", ON_DISK, n_documents, rejected, truncated, tokens, output=path, kept=kept)
