"""The rows of a small file that was encoded before it is embedded, together with other files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlfilter_core.corpus.documents import Rejection
from mlfilter_core.corpus.windows import Window, sha256_of_lines
from mlfilter_core.embedding.committed import Rows
from mlfilter_core.errors import SourceError


@dataclass(frozen=True)
class EncodedFile:
    """The rows of a file that is one window.

    Attributes:
        path: Path of the file.
        sha256: Digest of the lines of its documents.
        dropped: The rejections that are due to the encoder and not to the line.
        rows: Rows of the other documents.
    """

    path: Path
    sha256: str
    dropped: Sequence[Rejection]
    rows: Rows

    def take(self, window: Window) -> Rows:
        """Returns the rows of the file, and drops again the documents that were dropped from its window.

        Raises:
            SourceError: The window has other documents than those that were encoded.
        """
        if not window.is_last or sha256_of_lines(window.lines) != self.sha256:
            raise SourceError(f"{self.path} changed while it was read; run again when it is complete")
        window.drop_lines(self.dropped)
        return self.rows
