"""The file of rejected lines, with the reason of each.

Each line is one JSON object: `{"line": 5, "offset": 812, "reason": "not_json", "detail": "...", "raw": "..."}`.
A line that is not UTF-8, or longer than the limit, has `raw_base64` instead of `raw`.
"""

import base64
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

import orjson

from mlfilter_core.corpus.documents import Rejection
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import publish

BASE64_BYTES = 3 << 18  # a multiple of 3, so that encoded pieces can be concatenated


class RejectsFile:
    """Collects rejected lines; the file appears when the block ends without an error, if there are any.

    Attributes:
        by_reason: Number of rejected lines by reason.
        first: Description of the first rejected line.
    """

    def __init__(self, path: Path) -> None:
        """Writes nothing before the first rejection; a file of an earlier run is replaced or removed."""
        self.by_reason: Counter[str] = Counter()
        self.first = ""
        self._path = path
        self._stack = ExitStack()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "RejectsFile":
        return self

    def __exit__(self, error_type: object, error: BaseException | None, traceback: object) -> None:
        if self._file is not None:
            if error is not None:
                with suppress(OSError):  # what is not written yet may not fit on the disk; the first error counts
                    self._file.close()
            self._stack.__exit__(type(error) if error else None, error, None)
        elif error is None:
            self._path.unlink(missing_ok=True)

    @property
    def n_rejected(self) -> int:
        return self.by_reason.total()

    def add(self, rejection: Rejection, content: bytes) -> None:
        """Adds a line."""
        try:
            raw = {"raw": content.decode("utf-8")}
        except UnicodeDecodeError:
            raw = {"raw_base64": base64.b64encode(content).decode()}
        self._sink(rejection).write(orjson.dumps({**_facts(rejection), **raw}, option=orjson.OPT_APPEND_NEWLINE))

    def add_pieces(self, rejection: Rejection, pieces: Iterator[bytes]) -> None:
        """Adds a line that is too long for memory."""
        sink = self._sink(rejection)
        sink.write(orjson.dumps(_facts(rejection)).removesuffix(b"}") + b',"raw_base64":"')
        unwritten = b""
        for piece in pieces:
            unwritten += piece
            whole = len(unwritten) // BASE64_BYTES * BASE64_BYTES
            sink.write(base64.b64encode(unwritten[:whole]))
            unwritten = unwritten[whole:]
        sink.write(base64.b64encode(unwritten) + b'"}\n')

    def _sink(self, rejection: Rejection) -> IO[bytes]:
        self.by_reason[rejection.reason] += 1
        if self._file is None:
            self.first = _described(rejection.line, rejection.detail)
            self._file = self._stack.enter_context(open_new(self._stack.enter_context(publish(self._path))))
        return self._file


def first_rejected(path: Path) -> str:
    """Returns the description of the first line in a file of rejected lines, as in `RejectsFile.first`."""
    with open(path, "rb") as file:
        rejected = orjson.loads(file.readline())
    return _described(rejected["line"], rejected["detail"])


def _described(line: int, detail: str) -> str:
    return f"line {line}: {detail}"


def _facts(rejection: Rejection) -> dict[str, object]:
    return {
        "line": rejection.line,
        "offset": rejection.offset,
        "reason": rejection.reason,
        "detail": rejection.detail,
    }
