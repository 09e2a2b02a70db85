import errno
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import orjson
import pytest
import torch

from mlfilter_core.annotating import scored_rows
from mlfilter_core.annotating.annotate_file import score_columns
from mlfilter_core.annotating.annotate_request import AnnotateRequest
from mlfilter_core.annotating.scored_rows import write_scored_rows
from mlfilter_core.embedding_store.output_values import OutputValues
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import AnnotationError, EmbeddingFileError
from mlfilter_core.heads.head import Head, score
from tests.conftest import TINY_DIM, torch_threads

N_ROWS, BATCH_ROWS = 100, 7


@pytest.fixture(autouse=True, params=[1, 2], ids="threads={}".format)
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    with torch_threads(request.param):
        yield request.param


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of embeddings of another tool, in chunks of one batch."""
    with h5py.File(tmp_path / "x.h5", "w") as f:
        embeddings = np.random.default_rng(0).standard_normal((N_ROWS, TINY_DIM), np.float32)
        f.create_dataset("train/embeddings", data=embeddings, chunks=(BATCH_ROWS, TINY_DIM), fletcher32=True)
        f["train/document_id"] = [f"d{i}" for i in range(N_ROWS)]
        f["train/count"] = np.arange(N_ROWS)
    return tmp_path / "x.h5"


@pytest.fixture
def annotate(path: Path, heads: list[Head]) -> Callable[..., bytes]:
    """Returns what is written for all rows, with changes to the parts that do it."""

    def run(sink: Any = None, tell: Callable[[slice], None] = lambda rows: None) -> bytes:
        sink = sink or io.BytesIO()
        columns = score_columns(heads, AnnotateRequest(path.parent, {}))
        with EmbeddingFile(path, "train") as file, OutputValues(file, ["document_id", "count"], [], None) as values:
            write_scored_rows(sink, file, list(file.slices(BATCH_ROWS)), heads, columns, values, tell)
        return bytes(sink.getvalue())

    return run


def expected(path: Path, heads: list[Head]) -> list[dict[str, Any]]:
    with EmbeddingFile(path, "train") as file:
        outputs = score(heads, file.embeddings(slice(0, N_ROWS)))
    names = ("score_quality", "score_topics_0", "score_topics_1")
    return [
        {"document_id": f"d{i}", "count": i, **dict(zip(names, map(pytest.approx, row), strict=True))}
        for i, row in enumerate(outputs.tolist())
    ]


def test_stages_that_run_at_the_same_time_write_each_row_once_and_in_order(
    annotate: Callable[..., bytes], path: Path, heads: list[Head], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of three waits for the others, the earlier stages at a later batch: in turns, they would wait for ever."""
    meeting = threading.Barrier(3, timeout=30)
    left = {"read": 4, "looked up": 2, "written": 1}

    def meet(stage: str) -> None:
        left[stage] -= 1
        if left[stage] == 0:
            meeting.wait()

    read, look_up = EmbeddingFile.embeddings, OutputValues.members

    def embeddings(self: EmbeddingFile, rows: slice) -> Any:
        if threading.current_thread().name == "stage":
            meet("read")
        return read(self, rows)

    def looked_up(self: OutputValues, rows: slice) -> Any:
        yield from look_up(self, rows)
        meet("looked up")

    monkeypatch.setattr(EmbeddingFile, "embeddings", embeddings)
    monkeypatch.setattr(OutputValues, "members", looked_up)
    written = annotate(tell=lambda rows: meet("written"))
    assert [orjson.loads(line) for line in written.splitlines()] == expected(path, heads)


def test_the_bytes_are_the_same_each_time(annotate: Callable[..., bytes]) -> None:
    assert len({annotate() for _ in range(5)}) == 1


def is_any_thread_left() -> bool:
    return any(thread.name.startswith(("stage", "scoring")) for thread in threading.enumerate())


def damage(path: Path, row: int) -> None:
    """Changes a byte of an embedding, which its checksum shows."""
    with h5py.File(path) as f:
        dataset = f["train/embeddings"]
        place = dataset.id.get_chunk_info(row // BATCH_ROWS).byte_offset
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


class FullDisk(io.BytesIO):
    """A file that takes the lines of one batch."""

    def write(self, content: Any, /) -> int:
        if self.tell():
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content)


def test_an_error_of_reading_ends_all_threads(annotate: Callable[..., bytes], path: Path) -> None:
    damage(path, 50)
    with pytest.raises(EmbeddingFileError, match=r"x\.h5: embeddings in rows 49 to 55 cannot be read"):
        annotate()
    assert not is_any_thread_left()


def test_an_error_of_scoring_ends_all_threads(
    annotate: Callable[..., bytes], heads: list[Head], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setitem(heads[1].__dict__, "functions", [fail])
    with pytest.raises(RuntimeError, match="out of memory"):
        annotate()
    assert not is_any_thread_left()


def test_an_error_of_a_score_ends_all_threads(annotate: Callable[..., bytes], path: Path) -> None:
    with h5py.File(path, "a") as f:
        f["train/embeddings"][23, 1] = np.nan
    with pytest.raises(AnnotationError, match=r"row 23 \(document d23\): head quality gives nan"):
        annotate()
    assert not is_any_thread_left()


def test_an_error_of_an_output_key_ends_all_threads(annotate: Callable[..., bytes], path: Path) -> None:
    with h5py.File(path, "a") as f:
        del f["train/count"]
        f["train/count"] = np.full(N_ROWS, 1j)
    message = r"x\.h5: rows 0 to 6: a value cannot be written as JSON \(.*complex.*\); leave its key out of"
    with pytest.raises(AnnotationError, match=message):
        annotate()
    assert not is_any_thread_left()


def test_an_error_of_writing_ends_all_threads(annotate: Callable[..., bytes]) -> None:
    with pytest.raises(OSError, match="No space left on device"):
        annotate(FullDisk())
    assert not is_any_thread_left()


@pytest.mark.parametrize("row", [0, 1, 20, 99])
def test_of_two_errors_the_first_in_the_order_of_the_rows_is_raised(
    annotate: Callable[..., bytes], path: Path, row: int
) -> None:
    with h5py.File(path, "a") as f:
        f["train/embeddings"][row, 1] = np.nan
    for later in range(row + BATCH_ROWS, N_ROWS, BATCH_ROWS):
        damage(path, later)
    with pytest.raises(AnnotationError, match=rf"row {row} \(document d{row}\): head quality gives nan"):
        annotate()
    assert not is_any_thread_left()


def test_an_interruption_ends_all_threads(annotate: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scored_rows.ScoringThreads, "outputs", interrupt)
    with pytest.raises(KeyboardInterrupt):
        annotate()
    assert not is_any_thread_left()
