"""Interrupted files: the reuse of committed windows, and outputs equal to those of an uninterrupted run."""

import dataclasses
import json
import logging
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding.committed import MAGIC
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.encoder.encoder import EncodedTexts, Encoder, TokenizedTexts
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.files.task_files import find_files
from tests.conftest import WriteLines, limit_memory
from tests.embedding_content import content

N = 53
WINDOW = 5
BROKEN = (7, 8, 31)  # lines that are not documents


class StoppedError(Exception):
    """Stands for any error that ends a run."""


class Counting:
    """An encoder that counts encoded documents and can be interrupted."""

    def __init__(self, encoder: Encoder, interrupt_after: int | None = None) -> None:
        self.encoder = encoder
        self.n_encoded = 0
        self.budgets: list[int | None] = []
        self._interrupt_after = interrupt_after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode(self, tokens: TokenizedTexts, most: int | None, budget: int | None, *told: Any) -> EncodedTexts:
        if self._interrupt_after is not None and self.n_encoded >= self._interrupt_after:
            raise StoppedError
        self.n_encoded += len(tokens.input_ids)
        self.budgets.append(budget)
        return self.encoder.encode(tokens, most, budget, *told)


@pytest.fixture
def source(write_lines: WriteLines) -> Path:
    records: list[Any] = [{"id": f"d{i}", "text": "ba " * (i * 7 % 23) + f"document {i}"} for i in range(N)]
    for line in BROKEN:
        records[line] = b"{broken"
    records[11] = {"id": "too long", "text": "ba " * 100}
    return write_lines("x.jsonl", records)


@pytest.fixture
def request_(tiny_files: ModelFiles) -> EmbedRequest:
    schema = DocumentSchema(("text",), index_keys=("id",))
    return EmbedRequest(tiny_files, EncoderSettings(truncate=False), schema, commit_documents=WINDOW)


def embed(source: Path, request: EmbedRequest, encoder: Any, folder: str = "out") -> EmbedReport:
    (file,) = find_files(source.parent, source.name, SOURCE_SUFFIXES)
    output = source.parent / folder
    return embed_file(file, output / "x.h5", output / "rejected.jsonl", request, encoder)


def interrupt(source: Path, request: EmbedRequest, encoder: Encoder, after: int) -> int:
    """Embeds up to some number of documents; returns the number of encoded ones; the last ones may be lost."""
    counting = Counting(encoder, after)
    with pytest.raises(StoppedError):
        embed(source, request, counting)
    assert {path.name for path in (source.parent / "out").iterdir()} <= {".x.h5.committed"}
    return counting.n_encoded


def committed(source: Path) -> Path:
    return source.parent / "out" / ".x.h5.committed"


@pytest.mark.parametrize("after", [1, WINDOW, 3 * WINDOW, N - 8])
def test_an_interrupted_file_goes_on_and_is_the_same_in_the_end(
    source: Path, request_: EmbedRequest, tiny_encoder: Encoder, after: int
) -> None:
    n_before = interrupt(source, request_, tiny_encoder, after)
    again = Counting(tiny_encoder)
    report = embed(source, request_, again)
    undisturbed = embed(source, request_, Counting(tiny_encoder), "undisturbed")
    assert report.resumed + again.n_encoded == report.documents  # committed documents are not encoded again
    assert n_before - 3 * WINDOW <= report.resumed <= n_before  # one window is queued, one is being written
    assert undisturbed.resumed == 0
    facts = ("lines", "documents", "rejected", "blank", "tokens", "truncated", "rejected_by_reason", "duplicate_ids")
    assert [getattr(report, name) for name in facts] == [getattr(undisturbed, name) for name in facts]
    assert report.rejected_by_reason == {"too_many_tokens": 1, "not_json": 3}
    assert content(source.parent / "out/x.h5") == content(source.parent / "undisturbed/x.h5")
    assert not committed(source).exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.mlfilter_core.embedding.test_committed import Counting, embed
from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.encoder.model_files import resolve_model

class Killed(Counting):
    def encode(self, *args):
        if self.n_encoded > 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(*args)

files = resolve_model(sys.argv[2])
settings = EncoderSettings(truncate=False)
request = EmbedRequest(files, settings, DocumentSchema(("text",), index_keys=("id",)), commit_documents=5)
embed(Path(sys.argv[1]), request, Killed(load_encoder(files, EncoderSettings(), "cpu", 512)))
"""


def test_a_killed_process_s_work_is_taken_up(
    source: Path, request_: EmbedRequest, tiny_model: Path, tiny_encoder: Encoder
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, source, tiny_model], check=False)
    assert killed.returncode == -signal.SIGKILL
    # One window is queued, one is being written, one is not written yet.
    assert embed(source, request_, tiny_encoder).resumed > 20 - 3 * WINDOW
    embed(source, request_, tiny_encoder, "undisturbed")
    assert content(source.parent / "out/x.h5") == content(source.parent / "undisturbed/x.h5")


def test_wherever_what_was_committed_breaks_off_or_is_damaged_the_outcome_is_the_same(
    source: Path, request_: EmbedRequest, tiny_encoder: Encoder
) -> None:
    interrupt(source, request_, tiny_encoder, N - 8)
    whole = committed(source).read_bytes()
    embed(source, request_, tiny_encoder, "undisturbed")
    expected = content(source.parent / "undisturbed/x.h5")
    places = random.Random(4)
    resumed = set()
    for _ in range(25):
        place = places.randrange(len(whole))
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :]):
            committed(source).write_bytes(damaged)
            resumed.add(embed(source, request_, tiny_encoder).resumed)
            assert content(source.parent / "out/x.h5") == expected
    assert len(resumed) > 4


def test_rows_of_half_precision_are_committed_as_they_are_stored(
    source: Path, request_: EmbedRequest, tiny_encoder: Encoder
) -> None:
    halves = dataclasses.replace(request_, embedding_dtype="float16")
    interrupt(source, halves, tiny_encoder, 20)
    assert embed(source, halves, tiny_encoder).resumed > 0
    embed(source, halves, tiny_encoder, "undisturbed")
    assert content(source.parent / "out/x.h5") == content(source.parent / "undisturbed/x.h5")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"schema": DocumentSchema(("text", "id"), index_keys=("id",))},
            "text_keys: ['text'] in the file, ['text', 'id'] asked for",
        ),
        ({"commit_documents": 6}, "window_documents: 5 in the file, 6 asked for"),
        ({"embedding_dtype": "float16"}, "embedding_dtype: 'float32' in the file, 'float16' asked for"),
    ],
)
def test_what_another_request_committed_is_discarded_with_a_word(
    source: Path,
    request_: EmbedRequest,
    tiny_encoder: Encoder,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, Any],
    named: str,
) -> None:
    caplog.set_level(logging.INFO)
    interrupt(source, request_, tiny_encoder, 20)
    assert embed(source, dataclasses.replace(request_, **change), tiny_encoder).resumed == 0
    assert f"{committed(source)} is discarded: it was made by another request: {named}" in caplog.text


def test_what_an_earlier_release_committed_is_discarded_with_a_word(
    source: Path, request_: EmbedRequest, tiny_encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = committed(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(MAGIC.replace(b"2", b"1"))
    assert embed(source, request_, tiny_encoder).resumed == 0
    assert f"{path} is discarded: another release wrote it, or it is broken" in caplog.text


def test_another_precision_of_the_model_is_another_request(
    source: Path, request_: EmbedRequest, tiny_files: ModelFiles, tiny_encoder: Encoder
) -> None:
    interrupt(source, request_, tiny_encoder, 20)
    settings = EncoderSettings(model_dtype="bfloat16")
    other = load_encoder(tiny_files, settings, "cpu", 512)
    assert embed(source, dataclasses.replace(request_, encoder=settings), other).resumed == 0


def test_a_source_that_changed_is_encoded_again_from_the_change_on(
    source: Path, request_: EmbedRequest, tiny_encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    interrupt(source, request_, tiny_encoder, 40)
    lines = source.read_text().splitlines()
    lines[17] = json.dumps({"id": "d17", "text": "another text"})
    source.write_text("\n".join(lines))
    report = embed(source, request_, tiny_encoder)
    assert 10 <= report.resumed < 17
    assert "the rest of the checkpoint is discarded, as the source changed" in caplog.text
    embed(source, request_, tiny_encoder, "undisturbed")
    assert content(source.parent / "out/x.h5") == content(source.parent / "undisturbed/x.h5")


def test_the_rest_is_encoded_in_batches_like_those_before(
    source: Path, request_: EmbedRequest, tiny_files: ModelFiles, tiny_encoder: Encoder
) -> None:
    interrupt(source, request_, load_encoder(tiny_files, EncoderSettings(), "cpu", 64), 20)
    other = Counting(tiny_encoder)
    assert embed(source, request_, other).resumed > 0
    assert set(other.budgets) == {64}
    with h5py.File(source.parent / "out/x.h5") as file:
        assert json.loads(file["train"].attrs["encoder"])["max_batch_tokens"] == 64


def test_documents_that_did_not_fit_in_memory_stay_rejected(
    source: Path, request_: EmbedRequest, tiny_files: ModelFiles
) -> None:
    small = limit_memory(load_encoder(tiny_files, EncoderSettings(), "cpu", 512), 25)
    interrupt(source, request_, small, 30)
    n_encoded_again = Counting(small)
    report = embed(source, request_, n_encoded_again)
    assert report.resumed > 0
    undisturbed = embed(source, request_, small, "undisturbed")
    assert report.rejected_by_reason["out_of_memory"] == undisturbed.rejected_by_reason["out_of_memory"] > 1
    rejects = [(source.parent / folder / "rejected.jsonl").read_text() for folder in ("out", "undisturbed")]
    assert rejects[0] == rejects[1]


def test_a_file_of_one_window_commits_nothing(
    source: Path, request_: EmbedRequest, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        "mlfilter_core.embedding.committed.CommittedRows._write", lambda *args: written.append("a window")
    )
    embed(source, dataclasses.replace(request_, commit_documents=N), tiny_encoder)
    assert written == []


def test_rows_outlive_the_process_at_once_and_the_machine_every_commit_documents(
    source: Path, request_: EmbedRequest, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr("os.fdatasync", flushed.append)
    report = embed(source, request_, tiny_encoder)
    n_windows: Sequence[int] = range(report.documents // WINDOW)
    assert len(n_windows) - 2 <= len(flushed) <= len(n_windows)
    assert np.isfinite(report.seconds)
