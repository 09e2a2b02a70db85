import gzip
import itertools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mlfilter_core.config.annotation import Scoring
from mlfilter_core.config.embedding import EmbeddingPipelineParameters
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.corpus.windows import FIRST_WINDOW, WINDOW_DOCUMENTS
from mlfilter_core.embedding.committed import Rows
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.window_encoder import WindowEncoder
from mlfilter_core.embedding.work import EmbedWork, embed_work
from mlfilter_core.embedding_store.layout import EMBEDDINGS
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.encoder.encoder import EncodedTexts, Encoder, TokenizedTexts
from mlfilter_core.encoder.forward_pass import ForwardPass
from mlfilter_core.files.task_files import TaskFile, find_files
from mlfilter_core.work.progress import Progress, heard_by
from mlfilter_core.work.workload import SomeFilesFailedError, run_files, worker_name
from tests.conftest import TINY_DIM

FIRST_DOCUMENTS = int(WINDOW_DOCUMENTS * FIRST_WINDOW)
N_FILES, N_DOCUMENTS = 12, 3


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Small files with texts of many lengths."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(N_FILES):
        write(folder / f"{i:02}.jsonl", [f"{'ba ' * (7 * (i + j) % 23)}{i} {j}" for j in range(N_DOCUMENTS)])
    return folder


class Calls(list[int]):
    """Numbers of documents in the calls of the encoder; the call after `most` ends the process."""

    most = 1 << 40


class EndedError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    seen, encode = Calls(), Encoder.encode

    def counting(self: Encoder, tokens: TokenizedTexts, *settings: Any) -> EncodedTexts:
        if len(seen) == seen.most:
            raise EndedError
        seen.append(len(tokens.n_tokens))
        return encode(self, tokens, *settings)

    monkeypatch.setattr(Encoder, "encode", counting)
    return seen


def write(path: Path, texts: Sequence[str]) -> None:
    path.write_text("".join(json.dumps({"id": text, "text": text}) + "\n" for text in texts))


def work_on(corpus: Path, model: Path, name: str = "out", **params: Any) -> EmbedWork:
    params = {"embedding_model": str(model), "max_batch_tokens": 512, "text_field": "text", **params}
    return embed_work(EmbeddingPipelineParameters(input_dir=corpus, output_dir=corpus.parent / name, **params))


def files_of(corpus: Path) -> list[TaskFile]:
    return list(find_files(corpus, "**/*", SOURCE_SUFFIXES))


def stored(report: EmbedReport) -> tuple[list[Any], NDArray[Any], dict[str, Any]]:
    with EmbeddingFile(Path(report.output), "train") as file:
        assert file.provenance is not None
        facts = {"counts": file.provenance.counts, "statistics": file.provenance.statistics}
        return file.column("document_id", slice(None)), file.array(EMBEDDINGS, slice(None)), facts


def assert_equal_alone(work: EmbedWork, reports: Sequence[EmbedReport], tmp_path: Path) -> None:
    """Compares files that were embedded together with the same files embedded one by one."""
    alone = replace(work, params=work.params.model_copy(update={"output_dir": tmp_path / "alone"}))
    for file, report in zip(files_of(work.params.input_dir), reports, strict=True):
        expected = alone.run(file)
        assert replace(report, output="", seconds=0, waited={}, started=0, worker="") == replace(
            expected, output="", seconds=0, waited={}, started=0, worker=""
        )
        (ids, rows, facts), (expected_ids, expected_rows, expected_facts) = stored(report), stored(expected)
        assert ids == expected_ids
        assert facts == expected_facts
        np.testing.assert_allclose(rows, expected_rows, atol=1e-6)
        rejects = [
            folder / f"{file.stem}.jsonl"
            for folder in (work.params.rejected_output_dir, alone.params.rejected_output_dir)
        ]
        assert [path.exists() for path in rejects] == [expected.rejected > 0] * 2
        assert not expected.rejected or rejects[0].read_bytes() == rejects[1].read_bytes()


def test_small_files_share_forward_passes_and_have_the_embeddings_that_they_have_alone(
    corpus: Path, tiny_model: Path, tmp_path: Path, calls: Calls
) -> None:
    work = work_on(corpus, tiny_model)
    reports = run_files(files_of(corpus), work)
    assert calls == [N_FILES * N_DOCUMENTS]
    assert_equal_alone(work, reports, tmp_path)


def test_rejected_lines_are_those_of_files_that_are_embedded_alone(
    corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Lines that are not JSON, too long, without text; a text with too many tokens; a file without documents."""
    lines = ['{"id": "a", "text": "one"}', "{", '{"id": "b"}', json.dumps({"text": "x" * 3000})]
    (corpus / "03.jsonl").write_text("\n".join([*lines, "", json.dumps({"id": "z", "text": "ba " * 500})]))
    (corpus / "04.jsonl").write_text("")
    (corpus / "05.jsonl").write_text("{\n{\n")
    work = work_on(corpus, tiny_model, max_line_bytes=2048, truncation=False, max_rejected_fraction=1.0)
    reports = run_files(files_of(corpus), work)
    assert [reports[i].rejected for i in (3, 4, 5)] == [4, 0, 2]
    assert_equal_alone(work, reports, tmp_path)


def test_groups_have_at_most_about_a_window_and_the_first_is_small(
    corpus: Path, tiny_model: Path, calls: Calls
) -> None:
    for i in range(N_FILES):
        write(corpus / f"{i:02}.jsonl", [f"{i} {j}" for j in range(FIRST_DOCUMENTS // 2)])
    run_files(files_of(corpus), work_on(corpus, tiny_model))
    assert calls == [FIRST_DOCUMENTS, 2 * FIRST_DOCUMENTS, 3 * FIRST_DOCUMENTS]


def test_a_file_of_several_windows_and_one_that_was_begun_are_embedded_alone(
    corpus: Path, tiny_model: Path, tmp_path: Path, calls: Calls
) -> None:
    write(corpus / "01.jsonl", [str(i) for i in range(WINDOW_DOCUMENTS + 1)])
    write(corpus / "02.jsonl", [str(i) for i in range(WINDOW_DOCUMENTS // 2)])
    work = work_on(corpus, tiny_model)
    calls.most = 3  # the first window is in the checkpoint, and perhaps the second
    with pytest.raises(EndedError):
        work.run(files_of(corpus)[2])
    calls.most = Calls.most
    reports = run_files(files_of(corpus), work)
    assert calls[3] == (N_FILES - 2) * N_DOCUMENTS
    assert sum(calls[4:]) == reports[1].documents + reports[2].documents - reports[2].resumed
    assert reports[2].resumed >= FIRST_DOCUMENTS


def test_finished_files_are_not_encoded_again(corpus: Path, tiny_model: Path, calls: Calls) -> None:
    files, work = files_of(corpus), work_on(corpus, tiny_model)
    run_files(files[:8], work)
    os.utime(files[0].path, (0, 0))  # its content decides
    reports = run_files(files, work)
    assert calls == [8 * N_DOCUMENTS, (N_FILES - 8) * N_DOCUMENTS]
    assert [report.status for report in reports] == ["skipped"] * 8 + ["embedded"] * (N_FILES - 8)


def test_outputs_of_another_request_are_replaced_together_or_refused(
    corpus: Path, tiny_model: Path, calls: Calls
) -> None:
    files = files_of(corpus)
    run_files(files, work_on(corpus, tiny_model))
    with pytest.raises(SomeFilesFailedError) as error:
        run_files(files, work_on(corpus, tiny_model, max_length=8))
    assert len(error.value.failures) == N_FILES
    run_files(files, work_on(corpus, tiny_model, max_length=8, overwrite=True))
    assert calls == [N_FILES * N_DOCUMENTS] * 2


def test_a_file_that_fails_does_not_fail_those_beside_it(corpus: Path, tiny_model: Path, calls: Calls) -> None:
    """One is broken off, one has too many rejected lines, one is missing."""
    write(corpus / "03.jsonl", ["some words " * 50])
    (corpus / "03.jsonl.gz").write_bytes(gzip.compress((corpus / "03.jsonl").read_bytes())[:-30])
    (corpus / "03.jsonl").unlink()
    (corpus / "05.jsonl").write_text("{\n" * 9)
    files, work = files_of(corpus), work_on(corpus, tiny_model, max_rejected_fraction=0.5)
    (corpus / "07.jsonl").unlink()
    with pytest.raises(SomeFilesFailedError) as error:
        run_files(files, work)
    assert set(error.value.failures) == {"03.jsonl.gz", "05.jsonl", "07.jsonl"}
    assert len(error.value.reports) == N_FILES - 3
    assert calls == [(N_FILES - 3) * N_DOCUMENTS]


def test_a_file_that_changes_after_it_was_encoded_fails_alone(
    corpus: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, work = files_of(corpus), work_on(corpus, tiny_model)
    rows = WindowEncoder.rows

    def changing(self: WindowEncoder, *arguments: Any) -> list[Rows]:
        write(files[4].path, ["other", "words", "now"])
        return rows(self, *arguments)

    monkeypatch.setattr(WindowEncoder, "rows", changing)
    with pytest.raises(SomeFilesFailedError, match="changed while it was read; run again") as error:
        run_files(files, work)
    assert set(error.value.failures) == {files[4].name}
    assert not files[4].output(work.params.embedding_output_dir, ".h5").exists()


def test_a_document_that_does_not_fit_in_memory_is_rejected_from_its_file(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = 60
    write(corpus / "02.jsonl", ["ba", "ba " * longest, "ba ba"])
    run = ForwardPass.run_if_it_fits
    monkeypatch.setattr(
        ForwardPass,
        "run_if_it_fits",
        lambda self, batch: None if max(map(len, batch)) >= longest else run(self, batch),
    )
    work = work_on(corpus, tiny_model)
    reports = run_files(files_of(corpus), work)
    assert reports[2].rejected_by_reason == {"out_of_memory": 1}
    assert [report.documents for report in reports] == [N_DOCUMENTS] * 2 + [2] + [N_DOCUMENTS] * (N_FILES - 3)
    assert sum(report.out_of_memory for report in reports) == reports[0].out_of_memory > 0


def test_chunks_of_documents_stay_with_their_file(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    work = work_on(corpus, tiny_model, chunks={"tokens": 16, "overlap": 4})
    reports = run_files(files_of(corpus), work)
    assert sum(report.chunks for report in reports) > N_FILES * N_DOCUMENTS
    assert_equal_alone(work, reports, tmp_path)


def test_the_time_of_shared_passes_is_divided_among_the_files(corpus: Path, tiny_model: Path) -> None:
    files, work = files_of(corpus), work_on(corpus, tiny_model)
    work.encoder()
    began = time.time()
    reports = run_files(files, work)
    ended = time.time()
    assert all(report.seconds > 0 for report in reports)
    assert sum(report.seconds for report in reports) <= ended - began
    assert began <= reports[0].started
    assert all(a.started + a.seconds <= b.started + 1e-3 for a, b in itertools.pairwise(reports))
    assert [bool(report.waited) for report in reports] == [True] + [False] * (N_FILES - 1)
    assert {report.worker for report in reports} == {worker_name()}


def test_files_that_take_long_tell_their_progress(
    corpus: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlfilter_core.work.progress.TELL_S", 0.0)
    heard: list[Progress] = []
    with heard_by(heard.append):
        reports = run_files(files_of(corpus), work_on(corpus, tiny_model))
    shared = [each for each in heard if each.file == reports[0].source and not each.waited]
    assert max(each.documents for each in shared) == N_FILES * N_DOCUMENTS
    assert max(each.tokens for each in shared) == sum(report.tokens for report in reports)
    assert {each.file for each in heard} == {report.source for report in reports}  # while they are written


def test_a_retry_with_scores_alone_encodes_no_finished_file_again(
    corpus: Path, tiny_model: Path, tmp_path: Path, calls: Calls
) -> None:
    with torch.random.fork_rng():
        torch.save(torch.nn.Linear(TINY_DIM, 1).state_dict(), tmp_path / "head.pt")
    scoring = Scoring(regression_head_checkpoints={"edu": str(tmp_path / "head.pt")}, output_keys=("document_id",))
    work = work_on(corpus, tiny_model, annotate_inline=scoring, keep_embeddings=False)
    run_files(files_of(corpus), work)
    assert {report.status for report in run_files(files_of(corpus), work)} == {"skipped"}
    assert calls == [N_FILES * N_DOCUMENTS]
