"""Full and read-only disks, and sources that change while they are read."""

import dataclasses
import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient

from flows.embed import embed
from flows.running.report import FilesFailedError, ReportError
from mlfilter_core.annotating.annotate_file import annotate_file
from mlfilter_core.annotating.annotate_request import AnnotateRequest
from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.embed_request import EmbedRequest, finished_embedding
from mlfilter_core.embedding_store.layout import EMBEDDING_SUFFIXES
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.encoder.encoder import EncodedTexts, Encoder, TokenizedTexts
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.errors import SourceError
from mlfilter_core.files.identity import file_sha256
from mlfilter_core.files.publishing import remove_leftovers
from mlfilter_core.files.task_files import find_files
from mlfilter_core.heads.checkpoint_formats import load_head
from mlfilter_core.run_report.run_records import read_run_records
from mlfilter_core.work.run_log import RunLog
from tests.conftest import WriteLines
from tests.embedding_content import content
from tests.faults.conftest import PAGE, Disk, WriteJob, names_below
from tests.flows.dask_workers import last_task_runs

N = 60
WINDOW = 5
MAX_LINE_BYTES = 1 << 14
STATES = {"x.h5", "rejected.jsonl"}


class Acting:
    """An encoder that calls a function at its n-th window, which changes files."""

    def __init__(self, encoder: Encoder, act: Callable[[], object], at: int = 4) -> None:
        self.encoder = encoder
        self._act = act
        self._left = at

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode(self, tokens: TokenizedTexts, most: int | None, budget: int | None, *told: Any) -> EncodedTexts:
        self._left -= 1
        if self._left == 0:
            self._act()
        return self.encoder.encode(tokens, most, budget, *told)


@pytest.fixture
def request_(tiny_files: ModelFiles) -> EmbedRequest:
    schema = DocumentSchema(("text",), index_keys=("id",))
    return EmbedRequest(tiny_files, EncoderSettings(), schema, commit_documents=WINDOW, max_line_bytes=MAX_LINE_BYTES)


def records(n_bytes_rejected: int = 1000) -> list[Any]:
    """Documents, and lines that are not documents."""
    records: list[Any] = [{"id": f"d{i}" * 20, "text": "ba " * (i % 23) + f"document {i}"} for i in range(N)]
    for line in range(7, N, 5):
        records[line] = b"{broken " + b"x" * n_bytes_rejected
    return records


@pytest.fixture
def source(write_lines: WriteLines) -> Path:
    return write_lines("x.jsonl", records())


@pytest.fixture
def lines(source: Path) -> bytes:
    return source.read_bytes()


def embedded(source: Path, output: Path, request: EmbedRequest, encoder: Any) -> EmbedReport:
    (file,) = find_files(source.parent, source.name, SOURCE_SUFFIXES)
    return embed_file(file, output / "x.h5", output / "rejected.jsonl", request, encoder)


@pytest.mark.parametrize(
    ("n_bytes_rejected", "stages"),
    [(10, {"out/.x.h5.committed", "out/x.h5"}), (4000, {"out/rejected.jsonl"})],
    ids=["documents", "rejected lines"],
)
def test_wherever_the_disk_gets_full_while_a_file_is_embedded_the_error_says_so_and_a_rerun_ends_well(
    n_bytes_rejected: int,
    stages: set[str],
    write_lines: WriteLines,
    request_: EmbedRequest,
    tiny_encoder: Encoder,
    disk: Disk,
    tmp_path: Path,
) -> None:
    """Each page of the output is once the page that does not fit."""
    source = write_lines("x.jsonl", records(n_bytes_rejected))
    embedded(source, tmp_path / "undisturbed", request_, tiny_encoder)
    expected = content(tmp_path / "undisturbed" / "x.h5")
    (disk.folder / "earlier.h5").write_bytes(b"earlier")
    stopped_at: Counter[str] = Counter()
    output = disk.folder / "out"
    output.mkdir()
    n_free = 0
    while True:
        disk.fill(n_free)
        try:
            embedded(source, output, request_, tiny_encoder)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            assert str(error) == f"[Errno 28] No space left on device: '{error.filename}'"
            stopped_at[Path(str(error.filename)).relative_to(disk.folder).as_posix()] += 1
            assert names_below(output) <= {".x.h5.committed"}
        else:
            break
        assert (disk.folder / "earlier.h5").read_bytes() == b"earlier"
        if n_free % (8 * PAGE) == 0:  # otherwise committed windows stay
            (output / ".x.h5.committed").unlink(missing_ok=True)
        n_free += PAGE
    assert stopped_at.keys() >= stages, stopped_at
    assert content(output / "x.h5") == expected
    assert names_below(output) == {"x.h5", "rejected.jsonl"}


def test_a_line_that_is_too_long_for_memory_and_for_the_disk_is_an_error_that_says_so(
    write_lines: WriteLines, request_: EmbedRequest, tiny_encoder: Encoder, disk: Disk
) -> None:
    source = write_lines("x.jsonl", [{"id": "long", "text": "ba " * 10_000}])
    disk.fill(4 * PAGE)
    with pytest.raises(OSError, match=rf"No space left on device: '{disk.folder}'"):
        embedded(source, disk.folder, request_, tiny_encoder)
    assert names_below(disk.folder) == {"ballast"}


def test_what_was_committed_before_the_disk_got_full_is_not_encoded_again(
    source: Path, request_: EmbedRequest, tiny_encoder: Encoder, disk: Disk, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="No space left on device"):
        embedded(source, disk.folder, request_, Acting(tiny_encoder, lambda: disk.fill(0), at=8))
    disk.free()
    assert embedded(source, disk.folder, request_, tiny_encoder).resumed >= 5 * WINDOW
    embedded(source, tmp_path / "undisturbed", request_, tiny_encoder)
    assert content(disk.folder / "x.h5") == content(tmp_path / "undisturbed" / "x.h5")


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_wherever_the_disk_gets_full_while_a_file_is_annotated_the_error_says_so_and_a_rerun_ends_well(
    source: Path,
    request_: EmbedRequest,
    tiny_encoder: Encoder,
    heads: dict[str, str],
    disk: Disk,
    tmp_path: Path,
    compression: Any,
) -> None:
    embedded(source, tmp_path / "embeddings", request_, tiny_encoder)
    (file,) = find_files(tmp_path / "embeddings", "*.h5", EMBEDDING_SUFFIXES)
    loaded = [load_head(name, Path(path)) for name, path in heads.items()]
    request = AnnotateRequest(
        disk.folder / "out", dict.fromkeys(heads, "0"), ("document_id", "text"), compression=compression
    )
    undisturbed = dataclasses.replace(request, output_dir=tmp_path / "undisturbed")
    annotate_file(file, undisturbed, loaded)
    request.output(file).parent.mkdir()
    stopped_at: set[str] = set()
    n_free = 0
    while True:
        disk.fill(n_free)
        try:
            annotate_file(file, request, loaded)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            assert str(error) == f"[Errno 28] No space left on device: '{error.filename}'"
            stopped_at.add(str(error.filename))
            assert names_below(disk.folder / "out") == set()
        else:
            break
        n_free += PAGE
    assert stopped_at == {str(request.output(file)), str(request.provenance_file(file))}
    assert request.output(file).read_bytes() == undisturbed.output(file).read_bytes()


def test_a_run_on_a_full_disk_fails_at_once_with_the_reason_and_a_rerun_does_the_rest(
    embed_job: WriteJob, corpus: Path, disk: Disk, tmp_path: Path, client: SyncPrefectClient
) -> None:
    for name in ("b/x", "b/y"):  # ids fill the disk, not embeddings
        lines = [json.dumps({"id": f"{i}" * 2000, "text": "word"}) + "\n" for i in range(100)]
        (corpus / f"{name}.jsonl").write_text("".join(lines))
    disk.remount("size=512k")
    elsewhere = {"local_settings.logging_dir": str(tmp_path / "logs"), "files_per_task": 1}
    job = embed_job(output_dir=str(disk.folder))
    full = r"1 of 3 files failed(?s:.*)b/y.jsonl: OSError: \[Errno 28\] No space left on device: '.*/b/y.h5'"
    with pytest.raises(FilesFailedError, match=full):
        embed(job, elsewhere)
    runs = last_task_runs(client, 3)
    assert {(run.name, run.state_type, run.run_count) for run in runs} >= {("embed b/y.jsonl", "FAILED", 1)}
    before = {path: path.read_bytes() for path in disk.folder.rglob("*.h5")}
    assert len(before) == 2
    disk.remount("size=8m")
    assert [row.status for row in embed(job, elsewhere).reports] == ["skipped", "skipped", "embedded"]
    assert before.items() <= {path: path.read_bytes() for path in disk.folder.rglob("*.h5")}.items()
    with EmbeddingFile(disk.folder / "embeddings" / "b" / "y.h5", "train") as file:
        assert file.n_rows == 100
    assert {name for name in names_below(disk.folder) if name.endswith((".part", ".lock", ".committed"))} == set()


def test_a_log_that_cannot_be_written_costs_no_work(
    embed_job: WriteJob, disk: Disk, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    disk.fill(0)
    job = embed_job()
    settings = {"local_settings.logging_dir": str(disk.folder), "files_per_task": 3}
    lost = r"files.jsonl cannot be written \(No space left on device\); 3 files are finished, 0 failed. Make room"
    with pytest.raises(ReportError, match=lost):
        embed(job, settings)
    assert len(list((tmp_path / "out" / "embeddings").rglob("*.h5"))) == 3
    assert "flow.log cannot be written ([Errno 28] No space left on device)" in capfd.readouterr().err
    disk.free()
    again = embed(job, settings)
    assert [row.status for row in again.reports] == ["skipped"] * 3
    assert len((again.logs / "files.jsonl").read_text().splitlines()) == 3


def test_a_run_whose_rows_cannot_be_written_is_recorded_as_failed(
    embed_job: WriteJob, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk gets full after the run has begun, and gives way to its last, small file."""
    end_by = RunLog.end_by

    def fill(self: RunLog, row: Mapping[str, Any]) -> None:
        disk.fill(0)

    def free(self: RunLog, error: BaseException) -> None:
        disk.free()
        end_by(self, error)

    monkeypatch.setattr(RunLog, "add", fill)
    monkeypatch.setattr(RunLog, "end_by", free)
    settings = {"local_settings.logging_dir": str(disk.folder), "files_per_task": 1}
    with pytest.raises(ReportError, match="3 files are finished, 0 failed"):
        embed(embed_job(), settings)
    (record,) = read_run_records(disk.folder, disk.folder)
    assert record.run.state == "ended by an error"
    assert "files.jsonl cannot be written (No space left on device)" in record.run.error


def test_a_folder_that_becomes_read_only_loses_nothing(
    lines: bytes, request_: EmbedRequest, tiny_encoder: Encoder, unprivileged: Path
) -> None:
    corpus, output = unprivileged / "corpus", unprivileged / "out"
    corpus.mkdir()
    copy = corpus / "x.jsonl"
    copy.write_bytes(lines)
    output.mkdir()
    (output / "earlier.h5").write_bytes(b"earlier")
    closed = Acting(tiny_encoder, lambda: output.chmod(0o555), at=8)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*/out/"):
        embedded(copy, output, request_, closed)
    visible = {name for name in names_below(output) if not name.startswith(".")}
    assert visible == {"earlier.h5"}
    with pytest.raises(PermissionError, match=r"Permission denied: '.*/out/x.h5'"):
        embedded(copy, output, request_, tiny_encoder)
    output.chmod(0o755)
    remove_leftovers(output)
    assert embedded(copy, output, request_, tiny_encoder).resumed >= 5 * WINDOW
    assert names_below(output) == {"earlier.h5", *STATES}
    embedded(copy, unprivileged / "undisturbed", request_, tiny_encoder)
    assert content(output / "x.h5") == content(unprivileged / "undisturbed" / "x.h5")


def test_a_disk_that_is_mounted_read_only_between_two_files_loses_nothing(
    source: Path, request_: EmbedRequest, tiny_encoder: Encoder, disk: Disk
) -> None:
    """Linux refuses a read-only remount while a file is open for writing."""
    embedded(source, disk.folder / "a", request_, tiny_encoder)
    before = content(disk.folder / "a" / "x.h5")
    disk.remount("ro")
    with pytest.raises(OSError, match=r"Read-only file system: '.*/b'"):
        embedded(source, disk.folder / "b", request_, tiny_encoder)
    with pytest.raises(OSError, match=r"Read-only file system: '.*/a/x.h5'"):
        embedded(source, disk.folder / "a", request_, tiny_encoder)
    assert content(disk.folder / "a" / "x.h5") == before
    disk.remount("rw")
    embedded(source, disk.folder / "b", request_, tiny_encoder)
    assert content(disk.folder / "b" / "x.h5") == before


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A source of several MB; its end is not read yet when the fourth window is encoded."""
    path = tmp_path / "corpus" / "x.jsonl"
    path.parent.mkdir()
    path.write_bytes(_lines("first"))
    return path


def _lines(word: str) -> bytes:
    records = ({"id": f"d{i}", "text": f"{word} {i}", "more": "x" * 100_000} for i in range(N))
    return b"{broken\n" + b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b'{"id": "new", "text": "word"}\n')


def _shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def _replace(path: Path) -> None:
    """The new file has the same size and modification time."""
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(_lines("other"))
    assert other.stat().st_size == status.st_size
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def _rewrite(path: Path) -> None:
    """The content changes in place, and the modification time is restored."""
    status = path.stat()
    with open(path, "r+b") as file:
        file.write(_lines("other"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def of_long_lines(request_: EmbedRequest) -> EmbedRequest:
    return dataclasses.replace(request_, max_line_bytes=1 << 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_grow, "changed while it was read; run again when it is complete"),
        (_shrink, "changed while it was read"),
        (_replace, "changed while it was read"),
        (_rewrite, "changed while it was read"),
        (Path.unlink, "was removed while it was read; run again when it is back"),
    ],
)
def test_a_source_that_changes_while_it_is_read_makes_no_output_and_a_rerun_when_it_is_quiet_does(
    change: Callable[[Path], None],
    message: str,
    large: Path,
    of_long_lines: EmbedRequest,
    tiny_encoder: Encoder,
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    with pytest.raises(SourceError, match=f"{large} {message}"):
        embedded(large, output, of_long_lines, Acting(tiny_encoder, lambda: change(large)))
    assert names_below(output) <= {".x.h5.committed"}
    if not large.exists():
        large.write_bytes(_lines("again"))
    embedded(large, output, of_long_lines, tiny_encoder)
    embedded(large, tmp_path / "undisturbed", of_long_lines, tiny_encoder)
    assert content(output / "x.h5") == content(tmp_path / "undisturbed" / "x.h5")
    with EmbeddingFile(output / "x.h5", "train") as file:
        assert file.provenance is not None
        assert file.provenance.source["sha256"] == file_sha256(large)


@pytest.mark.parametrize("change", [lambda path: path.chmod(0o600), lambda path: shutil.copy2(path, f"{path}.2")])
def test_a_source_of_which_only_the_rights_or_the_inode_change_is_the_same(
    change: Callable[[Path], None], large: Path, of_long_lines: EmbedRequest, tiny_encoder: Encoder, tmp_path: Path
) -> None:
    def act() -> None:
        change(large)
        if (copy := Path(f"{large}.2")).exists():
            copy.replace(large)

    report = embedded(large, tmp_path / "out", of_long_lines, Acting(tiny_encoder, act))
    assert report.documents == N


def test_a_source_that_is_replaced_later_with_its_size_and_time_is_found_out_by_its_hash(
    large: Path, of_long_lines: EmbedRequest, tiny_encoder: Encoder, heads: dict[str, str], tmp_path: Path
) -> None:
    """The recorded digest is that of the embedded bytes; size and time alone do not show the change."""
    embedded(large, tmp_path / "out", of_long_lines, tiny_encoder)
    _replace(large)
    (file,) = find_files(large.parent, large.name, SOURCE_SUFFIXES)
    assert finished_embedding(file, tmp_path / "out" / "x.h5", of_long_lines) is not None
    (embeddings,) = find_files(tmp_path / "out", "*.h5", EMBEDDING_SUFFIXES)
    loaded = [load_head(name, Path(path)) for name, path in heads.items()]
    request = AnnotateRequest(tmp_path / "annotated", dict.fromkeys(heads, "0"), ("document_id", "text"))
    with pytest.raises(SourceError, match=r"x.jsonl changed since .*x.h5 was made from it; embed it again"):
        annotate_file(embeddings, request, loaded)
    assert names_below(tmp_path / "annotated") == set()
