"""The annotated JSONL format: one line for each embedding, metadata first, then scores."""

import gzip
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Literal, cast

import orjson

from mlfilter_core.corpus import exact_json
from mlfilter_core.corpus.lines import Line, SourceReader
from mlfilter_core.corpus.own_outputs import PROVENANCE_FOLDER
from mlfilter_core.corpus.records import Record
from mlfilter_core.files.part_files import remove_unclaimed_parts
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.files.zstd import zstd

Compression = Literal["gzip", "zstd"] | None
SUFFIXES: dict[Compression, str] = {None: ".jsonl", "gzip": ".jsonl.gz", "zstd": ".jsonl.zst"}
# Level 6 of 9 takes twice the time of level 1 and saves a few per cent; scores are written and read often.
GZIP_LEVEL = 1
N_SHOWN_DOCUMENTS, N_SHOWN_CHARACTERS, MAX_SHOWN_LINE_BYTES = 3, 60, 1 << 20  # on a terminal


def provenance_path(folder: Path, relative: str) -> Path:
    """Returns where the provenance of an annotated file lies: a JSON object that says how the file was made.

    Args:
        folder: Folder of the annotated files.
        relative: The annotated file, relative to it.
    """
    return folder / PROVENANCE_FOLDER / f"{relative}.json"


def remove_leftover_parts(file: TaskFile, folder: Path) -> None:
    """Removes the parts of a finished output, of any compression, unless another run is making one of them."""
    for suffix in SUFFIXES.values():
        remove_unclaimed_parts(file.output(folder, suffix))


@contextmanager
def compressed(file: IO[bytes], compression: Compression) -> Iterator[IO[bytes]]:
    """Opens a stream for lines that compresses into an open file, which the caller closes afterwards.

    The same records give the same bytes, whatever the file's name and time.
    """
    if compression == "gzip":
        with gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) as stream:
            yield cast(IO[bytes], stream)
    elif compression == "zstd":
        with zstd.open(file, "wb") as stream:
            stream.write(b"")  # otherwise a file without records has no frame, which `zstd -d` reports as broken
            yield cast(IO[bytes], stream)
    else:
        yield file


def write_records(file: IO[bytes], records: Iterable[Record]) -> None:
    """Writes one line per record, with keys in order. Values may be NumPy's."""
    option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    file.writelines(exact_json.dumps(record, option) for record in records)


def first_lines(path: Path) -> list[str]:
    """Returns the first documents of an annotated file as JSON, with strings cut to the width of a terminal."""
    with SourceReader(path) as reader:
        lines = islice(reader.lines(MAX_SHOWN_LINE_BYTES), N_SHOWN_DOCUMENTS)
        return [_shortened(line.content) for line in lines if isinstance(line, Line)]


def _shortened(record: bytes) -> str:
    values = exact_json.loads(record)
    for key, value in values.items():
        if isinstance(value, str) and len(value) > N_SHOWN_CHARACTERS:
            values[key] = f"{value[:N_SHOWN_CHARACTERS]}..."
    return exact_json.dumps(values).decode()
