"""Files of embeddings that are scored in parts, compared with the same files scored as a whole."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlfilter_core.annotating.annotate_file import annotate_file
from mlfilter_core.annotating.annotate_parts import annotate_in_parts, annotate_part, part_outputs, parts_of
from mlfilter_core.annotating.annotate_report import AnnotateReport
from mlfilter_core.annotating.annotate_request import AnnotateRequest, finished_annotation
from mlfilter_core.annotating.annotated_format import Compression
from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.corpus.lines import Line, SourceReader
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.embedding_store.layout import EMBEDDING_SUFFIXES
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.encoder.settings import Chunks, EncoderSettings
from mlfilter_core.errors import AnnotationError, SourceError
from mlfilter_core.files.publishing import remove_leftovers
from mlfilter_core.files.task_files import TaskFile, find_files
from mlfilter_core.heads.checkpoint_formats import load_head
from mlfilter_core.heads.head import Head
from tests.conftest import TINY_DIM, WriteLines

N = 300
BATCH = 32
KEYS = ("document_id", "meta.n", "rare", "*")


@pytest.fixture
def heads(tmp_path: Path) -> list[Head]:
    torch.manual_seed(3)
    torch.save(torch.nn.Linear(TINY_DIM, 1).state_dict(), tmp_path / "edu.pt")
    return [load_head("edu", str(tmp_path / "edu.pt"))]


@pytest.fixture
def embed(
    write_lines: WriteLines, tiny_files: ModelFiles, tiny_encoder: Encoder, tmp_path: Path
) -> Callable[..., TaskFile]:
    """Writes a source, embeds it, and returns the HDF5 file."""

    def run(name: str = "x.jsonl.gz", chunks: Chunks | None = None) -> TaskFile:
        records = [
            {"text": f"ba be bi {i} " * (1 + i % 40), "meta": {"n": i / 8}, **({} if i % 50 else {"rare": i})}
            for i in range(N)
        ]
        write_lines(f"corpus/{name}", [*records[:7], b"{broken", b"", *records[7:]])
        (source,) = find_files(tmp_path / "corpus", name, SOURCE_SUFFIXES)
        encoder = tiny_encoder
        if chunks is not None:
            encoder = load_encoder(tiny_files, EncoderSettings(max_length=8, chunks=chunks), "cpu", 512)
        request = EmbedRequest(tiny_files, encoder.settings, DocumentSchema(("text",)))
        embed_file(source, source.output(tmp_path / "embeddings", ".h5"), tmp_path / "rejected", request, encoder)
        (file,) = find_files(tmp_path / "embeddings", "**/*", EMBEDDING_SUFFIXES)
        return file

    return run


def request_for(folder: Path, **changes: Any) -> AnnotateRequest:
    settings = {"output_keys": KEYS, "batch_size": BATCH, **changes}
    return AnnotateRequest(folder, {"edu": "0" * 64}, **settings)


def in_parts(file: TaskFile, n: int, request: AnnotateRequest, heads: list[Head], order: int = 1) -> AnnotateReport:
    """Scores a file as a run does; `order` -1 begins with the last part."""
    reports = [annotate_part(part, request, heads) for part in parts_of(file, request, n)[::order]]
    return annotate_in_parts(file, request, heads).with_parts(reports)


def lines_of(path: Path) -> list[bytes]:
    with SourceReader(path) as reader:
        return [line.content for line in reader.lines(1 << 30) if isinstance(line, Line)]


def facts(file: TaskFile, request: AnnotateRequest) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(request.provenance_file(file).read_text())
    del made["output"]
    return made


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
@pytest.mark.parametrize(("n", "order"), [(2, 1), (5, -1), (10, 1), (999, 1)])
def test_parts_equal_the_whole(
    embed: Callable[..., TaskFile], heads: list[Head], tmp_path: Path, n: int, order: int, compression: Compression
) -> None:
    file = embed()
    whole = request_for(tmp_path / "whole", compression=compression)
    divided = request_for(tmp_path / "divided", compression=compression)
    one = annotate_file(file, whole, heads)
    other = in_parts(file, n, divided, heads, order)
    assert lines_of(divided.output(file)) == lines_of(whole.output(file))
    if compression is None:
        assert divided.output(file).read_bytes() == whole.output(file).read_bytes()
    expected, found = facts(file, whole), facts(file, divided)
    of_scores, of_divided = expected["statistics"].pop("scores"), found["statistics"].pop("scores")
    assert found == expected
    assert of_divided["documents"] == N
    assert of_divided["histograms"] == of_scores["histograms"]
    assert of_divided["products"] == pytest.approx(of_scores["products"])
    assert (other.documents, other.missing_values, other.status) == (N, one.missing_values, "annotated")
    assert (finished := finished_annotation(file, divided)) is not None
    assert finished.documents == N
    assert not list(tmp_path.rglob("*.parts"))


def test_documents_of_several_chunks_stay_whole(
    embed: Callable[..., TaskFile], heads: list[Head], tmp_path: Path
) -> None:
    file, request = (
        embed(chunks=Chunks(most=4)),
        request_for(tmp_path / "out", output_keys=("document_id", "score_edu_chunks")),
    )
    in_parts(file, 4, request, heads)
    whole = request_for(tmp_path / "whole", output_keys=request.output_keys)
    annotate_file(file, whole, heads)
    assert request.output(file).read_bytes() == whole.output(file).read_bytes()


def test_a_file_of_one_batch_is_not_divided(embed: Callable[..., TaskFile], tmp_path: Path) -> None:
    file = embed()
    assert parts_of(file, request_for(tmp_path / "out", batch_size=N), 4) == []
    assert len(parts_of(file, request_for(tmp_path / "out"), 4, min_rows=100)) == 3
    file.path.write_bytes(b"no HDF5")
    assert parts_of(file, request_for(tmp_path / "out"), 4) == []


def test_parts_are_made_again_where_something_differs(
    embed: Callable[..., TaskFile], heads: list[Head], tmp_path: Path
) -> None:
    """Each row: what differs, and which of three parts are made again."""
    file, request = embed(), request_for(tmp_path / "out")
    parts = parts_of(file, request, 3)
    for part in parts:
        annotate_part(part, request, heads)
    states = lambda of: [annotate_part(part, of, heads).status for part in parts]  # noqa: E731
    assert states(request) == ["skipped"] * 3
    lines, provenance = part_outputs(parts[1], request)
    lines.write_bytes(lines.read_bytes()[:-5])
    assert states(request) == ["skipped", "annotated", "skipped"]
    provenance.write_text("{broken")
    assert states(request) == ["skipped", "annotated", "skipped"]
    assert states(request_for(tmp_path / "out", score_prefix="s_")) == ["annotated"] * 3


def test_parts_with_batches_of_another_size_are_discarded(
    embed: Callable[..., TaskFile], heads: list[Head], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, other = embed(), request_for(tmp_path / "out", batch_size=17)
    annotate_part(parts_of(file, other, 3)[0], other, heads)
    request = request_for(tmp_path / "out")
    report = annotate_in_parts(file, request, heads)
    assert "its parts do not make the whole" in caplog.text
    assert report.documents == N
    assert lines_of(request.output(file)) == lines_of(_whole(file, heads, tmp_path))


def _whole(file: TaskFile, heads: list[Head], tmp_path: Path) -> Path:
    request = request_for(tmp_path / "whole")
    annotate_file(file, request, heads)
    return request.output(file)


def test_a_key_that_no_document_has_fails_as_without_parts(
    embed: Callable[..., TaskFile], heads: list[Head], tmp_path: Path
) -> None:
    file, request = embed(), request_for(tmp_path / "out", output_keys=("document_id", "mate.n"))
    with pytest.raises(AnnotationError, match=r'"mate.n" is neither in .* nor in any document'):
        in_parts(file, 4, request, heads)
    assert not list(tmp_path.rglob("*.parts"))
    assert not request.output(file).exists()


def test_a_source_that_changes_between_parts_is_found(
    embed: Callable[..., TaskFile], heads: list[Head], tmp_path: Path
) -> None:
    file, request = embed("x.jsonl"), request_for(tmp_path / "out")
    first, *others = parts_of(file, request, 3)
    annotate_part(first, request, heads)
    source = tmp_path / "corpus/x.jsonl"
    status = source.stat()
    source.write_bytes(source.read_bytes().replace(b"ba be bi 3 ", b"ba be bo 3 "))
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))  # not even by its time
    with pytest.raises(SourceError, match=r"changed since .* was made from it"):
        for part in others:
            annotate_part(part, request, heads)
    assert not request.output(file).exists()


def test_a_source_that_changes_after_the_last_part_is_found(
    embed: Callable[..., TaskFile], heads: list[Head], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, request = embed("x.jsonl"), request_for(tmp_path / "out")
    annotate_part(parts_of(file, request, 3)[-1], request, heads)
    source = tmp_path / "corpus/x.jsonl"
    source.write_bytes(source.read_bytes().replace(b"ba be bi 3 ", b"ba be bo 3 "))
    with pytest.raises(SourceError, match=r"changed since .* was made from it"):
        annotate_in_parts(file, request, heads)
    assert "its parts do not make the whole" in caplog.text
    assert not list(tmp_path.rglob("*.parts"))


def test_parts_of_a_finished_file_are_removed(
    embed: Callable[..., TaskFile], heads: list[Head], tmp_path: Path
) -> None:
    file, request = embed(), request_for(tmp_path / "out")
    annotate_part(parts_of(file, request, 3)[0], request, heads)
    assert remove_leftovers(tmp_path / "out") == 0
    annotate_file(file, request, heads)
    assert remove_leftovers(tmp_path / "out") == 1
    assert not list(tmp_path.rglob("*.parts"))
