"""Embeds small files whose documents share forward passes.

The documents of a file far below a window fill only a small batch, and its stages would wait for one another. Here, the
stages read, tokenize and encode several files at a time, while those before them are written one by one.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlfilter_core.compute.stages import Stages, held_back
from mlfilter_core.corpus.sources import open_source
from mlfilter_core.corpus.windows import (
    FIRST_WINDOW,
    WHOLE_WINDOW,
    WINDOW_BYTES,
    WINDOW_DOCUMENTS,
    Window,
    read_windows,
    sha256_of_lines,
)
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.embedding.encoded_file import EncodedFile
from mlfilter_core.embedding.window_encoder import WindowEncoder
from mlfilter_core.errors import FileError
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work.progress import Progress, ProgressTeller
from mlfilter_core.work.workload import SKIPPED

if TYPE_CHECKING:
    from mlfilter_core.encoder.encoder import Encoder, TokenizedTexts

Outcome = EmbedReport | FileError
EncodedGroup = list[tuple[TaskFile, EncodedFile]]


@dataclass
class Group:
    """Files that share forward passes: the window that each of them is, and the digest of its lines."""

    files: list[TaskFile] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    sha256: list[str] = field(default_factory=list)
    n_documents: int = 0  # of all windows, and their bytes: there may be thousands of them
    n_bytes: int = 0

    def add(self, file: TaskFile, window: Window) -> None:
        self.files.append(file)
        self.windows.append(window)
        self.sha256.append(sha256_of_lines(window.lines))
        self.n_documents += len(window.documents)
        self.n_bytes += window.n_bytes

    def has_room_for(self, window: Window, share: float) -> bool:
        """Returns whether it has at most this share of a whole window with another one."""
        n_documents, n_bytes = self.n_documents + len(window.documents), self.n_bytes + window.n_bytes
        return n_documents <= WINDOW_DOCUMENTS * share and n_bytes <= WINDOW_BYTES * share


def embed_together(
    files: Sequence[TaskFile],
    request: EmbedRequest,
    encoder: "Encoder",
    folder_of: Callable[[TaskFile], Path],
    write: Callable[[TaskFile, EncodedFile], Outcome],
) -> dict[str, Outcome]:
    """Embeds those of the files that are a window at most.

    Args:
        files: Whole files.
        request: Request of this run.
        encoder: The encoder of `request.model` and `request.encoder`.
        folder_of: Returns the folder of a file's output, for the bytes of lines above the limit.
        write: Embeds a file from its rows; called in another thread, for one file after another.

    Returns:
        Report or error of each file by name. Larger files, and those that cannot be read, are missing.

    Raises:
        OSError: Writing failed.
    """
    outcomes: dict[str, Outcome] = {}
    windows = WindowEncoder(encoder, request)
    with Stages("reading", "tokenizing", "encoding", "writing") as stages:
        clock = _Clock(stages)

        def write_all(encoded: Iterator[EncodedGroup]) -> None:
            for group in encoded:
                outcomes.update(clock.divide({file.name: write(file, rows) for file, rows in group}))

        groups = stages.run(_groups(files, request, folder_of))
        tokenized = stages.run((group, windows.tokenize(group.windows)) for group in groups)
        # In this thread, as in `FileEmbedding`.
        stages.hand_over(_encode(tokenized, windows), write_all)
    return outcomes


def _groups(files: Sequence[TaskFile], request: EmbedRequest, folder_of: Callable[[TaskFile], Path]) -> Iterator[Group]:
    group, share = Group(), FIRST_WINDOW
    for file in files:
        window = _only_window(file, request, folder_of(file))
        if window is None:
            continue
        if group.files and not group.has_room_for(window, share):
            yield group
            group, share = Group(), min(1.0, 2 * share)
        group.add(file, window)
    if group.files:
        yield group


def _only_window(file: TaskFile, request: EmbedRequest, scratch: Path) -> Window | None:
    """Returns the documents of a file; None if they are more than a window, or cannot be read."""
    try:
        if file.size() > WINDOW_BYTES:
            return None
        scratch.mkdir(parents=True, exist_ok=True)
        with open_source(file.path, request.schema.keys, file.relative) as reader:
            window = next(
                read_windows(
                    *(reader, file, request.schema, request.max_line_bytes, scratch),
                    *(request.commit_documents, WHOLE_WINDOW),
                )
            )
    except (FileError, OSError):  # it is reported when the file is embedded alone
        return None
    for _, content in window.rejected:  # the file is read again when it is written
        if not isinstance(content, bytes):
            content.close()
    return window if window.is_last else None


def _encode(
    tokenized: "Iterator[tuple[Group, list[TokenizedTexts]]]", windows: WindowEncoder
) -> Iterator[EncodedGroup]:
    begun = (
        (group, tokens, windows.encode(tokens, on_batch=_Progress(group.files[0], tokens).count))
        for group, tokens in tokenized
    )
    for group, tokens, texts in held_back(begun, windows.n_begun_ahead):
        rows = windows.rows(group.windows, tokens, texts)
        yield [
            (file, EncodedFile(file.path, sha256, window.dropped, rows[i]))
            for i, (file, window, sha256) in enumerate(zip(group.files, group.windows, group.sha256, strict=True))
        ]


class _Progress:
    """Tells the progress of the forward passes of a group, as that of its first file."""

    def __init__(self, first: TaskFile, tokens: "list[TokenizedTexts]") -> None:
        self._file = first.name
        self._n_chunks = sum(len(own.input_ids) for own in tokens)
        self._n_documents = sum(len(own.n_tokens) for own in tokens)
        self._done, self._tokens = 0, 0
        self._teller = ProgressTeller()

    def count(self, n_chunks: int, n_tokens: int) -> None:
        self._done, self._tokens = self._done + n_chunks, self._tokens + n_tokens
        if self._teller.is_due():
            share = self._done / self._n_chunks
            documents = round(share * self._n_documents)
            self._teller.tell(Progress(self._file, documents, self._tokens, share=share))


class _Clock:
    """Divides the time that the stages take among the files, by their tokens."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._time = time.time()
        self._waited: Counter[str] = Counter()

    def divide(self, outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
        """Returns the outcomes of files that were written since the last call, with their time in the reports."""
        seconds, waited = time.time() - self._time, Counter(self._stages.waited())
        embedded = {
            name: outcome
            for name, outcome in outcomes.items()
            if isinstance(outcome, EmbedReport) and outcome.status != SKIPPED
        }
        n_tokens = sum(1 + report.tokens for report in embedded.values())
        waited_since: dict[str, float] | None = dict(waited - self._waited)  # in the first report, for the sum
        for name, report in embedded.items():
            own = seconds * (1 + report.tokens) / n_tokens
            outcomes[name] = replace(report, seconds=own, started=self._time, waited=waited_since or {})
            self._time += own
            waited_since = None
        self._time, self._waited = time.time(), waited
        return outcomes
