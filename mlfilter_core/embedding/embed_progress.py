"""The progress of embedding one file, reported by its stages from their threads."""

from typing import TYPE_CHECKING

from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work.progress import Progress, ProgressTeller

if TYPE_CHECKING:
    from mlfilter_core.compute.stages import Stages
    from mlfilter_core.corpus.sources import Source
    from mlfilter_core.encoder.encoder import Encoder


class EmbedProgress:
    """Counts what the stages have done, and reports it to the listener."""

    def __init__(self, file: TaskFile, reader: "Source", stages: "Stages", encoder: "Encoder") -> None:
        """Takes the file or its part, and the objects to report on."""
        self._file = file.name
        self._start, stop = file.part.bounds(file.path.stat().st_size)
        self._n_bytes = max(1, stop - self._start)
        self._reader = reader
        self._stages = stages
        self._encoder = encoder
        self._teller = ProgressTeller()
        self._read_documents = 0
        self._documents = 0.0
        self._tokens = 0
        self._rejected = 0
        self._committed = 0
        self._out_of_memory = 0

    def read(self, n_documents: int) -> None:
        """Records that documents were read."""
        self._read_documents += n_documents

    def encoded(self, n_documents: float, n_tokens: int) -> None:
        """Records that documents, or parts of documents, were encoded, by this run or an earlier one."""
        self._documents += n_documents
        self._tokens += n_tokens
        self._tell()

    def wrote(self, n_committed: int, n_rejected: int, n_out_of_memory: int) -> None:
        """Records the totals of committed documents, rejected lines and out-of-memory events."""
        self._committed = max(self._committed, n_committed)
        self._rejected, self._out_of_memory = n_rejected, n_out_of_memory
        self._tell()

    def _tell(self) -> None:
        if not self._teller.is_due(self._committed):
            return
        # Documents that are read but not encoded are in the windows between the stages.
        share_read = min(1.0, max(0.0, (self._reader.n_bytes - self._start) / self._n_bytes))
        self._teller.tell(
            Progress(
                file=self._file,
                documents=round(self._documents),
                tokens=self._tokens,
                rejected=self._rejected,
                committed=self._committed,
                share=min(1.0, share_read * self._documents / max(1, self._read_documents)),
                waited=self._stages.waited(),
                max_batch_tokens=self._encoder.max_batch_tokens,
                out_of_memory=self._out_of_memory,
                gpu_memory_bytes=self._encoder.gpu_memory_bytes(),
            )
        )
