import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.encoder.settings import Chunks, EncoderSettings
from mlfilter_core.errors import ConfigError
from mlfilter_core.run_report.collect import collect
from mlfilter_core.run_report.page import render
from mlfilter_core.run_report.pictures import pictures_of
from mlfilter_core.work.run_log import ROWS, RUN
from tests.mlfilter_core.run_report.conftest import WriteOutputs
from tests.mlfilter_core.toy_kind import register_toys
from tests.output_folders import STARTED, documents, head, make_outputs, write_run

FILES = {
    "a/x.jsonl": [*documents("x", 9), b"not json", b""],
    "b/y.jsonl": documents("y", 14),
    "b/z.jsonl": [{"text": 5}, {"text": 6}, *documents("z", 3)],
}
HEADS = (head("education", 1), head("toxicity", 2))


def test_totals_are_the_sums_of_what_the_files_hold(write_outputs: WriteOutputs) -> None:
    facts = collect(write_outputs(FILES, HEADS))
    totals = facts.totals
    assert (totals.embedded_files, totals.lines, totals.documents, totals.rejected, totals.blank) == (3, 30, 26, 3, 1)
    assert totals.add_up
    assert (totals.annotated_files, totals.annotated, totals.unfinished_files) == (3, 26, 0)
    assert facts.notices == []
    assert facts.encoder["max_length"] == facts.max_length == 64
    assert set(facts.heads) == {"education", "toxicity"}


def test_lengths_are_those_of_the_rows(write_outputs: WriteOutputs) -> None:
    output_dir = write_outputs(FILES)
    facts = collect(output_dir)
    lengths = []
    for path in output_dir.glob("embeddings/**/*.h5"):
        with EmbeddingFile(path, "train") as file:
            lengths += file.array("n_tokens", slice(None)).tolist()
    counts, _ = np.histogram(lengths, facts.document_tokens.edges())
    assert facts.document_tokens.counts.tolist() == counts.tolist()
    assert facts.totals.tokens == sum(lengths)
    assert facts.totals.truncated > 0


def test_scores_are_those_of_the_lines(write_outputs: WriteOutputs) -> None:
    output_dir = write_outputs(FILES, HEADS)
    facts = collect(output_dir)
    lines = [line for path in output_dir.glob("annotated_data/*/*.jsonl") for line in path.read_text().splitlines()]
    records = [json.loads(line) for line in lines]
    values = np.array([[record["score_education"], record["score_toxicity"]] for record in records])
    assert facts.scores is not None
    assert facts.scores.names == ("score_education", "score_toxicity")
    np.testing.assert_allclose(facts.scores.means, values.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(facts.scores.correlations(), np.corrcoef(values.T), atol=1e-5)
    assert [found.n for found in facts.scores.histograms] == [26, 26]


def test_rejected_lines_have_examples(write_outputs: WriteOutputs) -> None:
    one, other = collect(write_outputs(FILES)).rejects
    assert (one.reason, one.count, other.reason, other.count) == ("not_a_string", 2, "not_json", 1)
    assert [example["text"] for example in one.examples] == ['{"text": 5}', '{"text": 6}']
    assert (other.examples[0]["file"], other.examples[0]["line"]) == ("rejected/a/x.jsonl", 10)


def test_embeddings_that_did_not_stay_are_counted_by_what_was_made_of_them(write_outputs: WriteOutputs) -> None:
    output_dir = write_outputs(FILES, HEADS)
    with_embeddings = collect(output_dir)
    shutil.rmtree(output_dir / "embeddings")
    facts = collect(output_dir)
    assert facts.totals.lines == with_embeddings.totals.lines == 30
    assert facts.document_tokens == with_embeddings.document_tokens
    assert facts.rejects == with_embeddings.rejects
    assert facts.max_length == 64


def test_each_file_has_the_row_of_the_run_that_did_it(write_outputs: WriteOutputs) -> None:
    output_dir = write_outputs(FILES, HEADS)
    skipped = [{"file": "a/x.jsonl", "status": "skipped", "documents": 9, "seconds": 0.0, "output": "x"}]
    write_run(output_dir / "logs" / "embed-two", "embed", skipped, after_s=2000)
    rows = {(row.flow, row.file): row for row in collect(output_dir).files}
    assert len(rows) == 6
    row = rows["embed", "a/x.jsonl"]
    assert (row.run, row.status, row.documents, row.seconds) == ("embed-one", "embedded", 9, 8.0)
    assert (row.worker, row.started, row.output) == ("worker-0", STARTED, "embeddings/a/x.h5")


def test_a_run_that_was_killed_leaves_what_it_did(write_outputs: WriteOutputs) -> None:
    output_dir = write_outputs(FILES, has_end=False)
    rows = output_dir / "logs" / "embed-one" / ROWS
    rows.write_bytes(rows.read_bytes() + b'{"file": "b/half')  # killed while it wrote a line
    (output_dir / "embeddings" / "b" / ".w.h5.committed").write_bytes(b"")
    facts = collect(output_dir)
    (run,) = facts.runs
    assert (run.state, run.done, run.seconds) == ("killed", 3, 33.0)  # until the last file that it finished
    assert any("embed-one was killed" in notice for notice in facts.notices)
    assert any("1 file unfinished" in notice for notice in facts.notices)
    assert "there are no annotated files yet" in facts.notices


def test_a_file_that_a_later_run_found_finished_has_not_failed(write_outputs: WriteOutputs) -> None:
    output_dir = write_outputs(FILES)
    failed = [{"file": "a/x.jsonl", "status": "failed", "reason": "another request", "output": ""}]
    skipped = [{"file": "a/x.jsonl", "status": "skipped", "documents": 9, "seconds": 0.0, "output": "x"}]
    write_run(output_dir / "logs" / "embed-two", "embed", failed, after_s=1000)
    facts = collect(output_dir)
    assert "1 file of embed failed: see Failed files" in facts.notices
    write_run(output_dir / "logs" / "embed-three", "embed", skipped, after_s=2000)
    facts = collect(output_dir)
    assert {row.status for row in facts.files} == {"embedded"}
    assert not any("failed" in notice for notice in facts.notices)


def test_every_run_that_needs_a_word_gets_one(write_outputs: WriteOutputs) -> None:
    """A killed shard is reported even if a shard that started later has finished."""
    output_dir = write_outputs(FILES)
    done = {"file": "w", "status": "embedded", "documents": 9, "started": STARTED + 10, "seconds": 50.0, "worker": "w"}
    write_run(output_dir / "logs" / "embed-two", "embed", [done], has_end=False, after_s=10)
    write_run(output_dir / "logs" / "embed-three", "embed", [], after_s=20)
    assert any(notice.startswith("embed-two was killed before its end") for notice in collect(output_dir).notices)
    write_run(output_dir / "logs" / "embed-four", "embed", [], after_s=1000)
    assert not any("was killed" in notice for notice in collect(output_dir).notices)
    write_run(output_dir / "logs" / "embed-five", "embed", [], has_end=False, after_s=2000)
    about = output_dir / "logs" / "embed-five" / RUN
    about.write_text(json.dumps({**json.loads(about.read_text()), "error": "ConfigError: no such key"}))
    assert "embed-five ended by an error: ConfigError: no such key" in collect(output_dir).notices


def test_a_folder_that_was_renamed_has_not_the_runs_of_the_one_that_took_its_name(write_outputs: WriteOutputs) -> None:
    from mlfilter_core.run_report.write_report import write_report

    output_dir = write_outputs(FILES)
    write_report(output_dir)
    renamed = output_dir.rename(output_dir.with_name("renamed"))
    write_run(output_dir / "logs" / "embed-new", "embed", [], after_s=1000)
    assert [run.name for run in collect(renamed).runs] == ["embed-one"]


def test_a_run_that_goes_on_is_told_by_its_claim(write_outputs: WriteOutputs) -> None:
    from mlfilter_core.files.claims import claim

    output_dir = write_outputs(FILES, has_end=False)
    with claim(output_dir / "logs" / "embed-one" / RUN):
        facts = collect(output_dir)
    assert facts.runs[0].state == "running"
    assert any("embed-one is still running" in notice for notice in facts.notices)


def test_files_of_two_encoders_are_said_to_be(write_outputs: WriteOutputs) -> None:
    output_dir = write_outputs(FILES)
    with h5py.File(output_dir / "embeddings" / "b" / "z.h5", "a") as file:
        made = json.loads(file["train"].attrs["encoder"])
        file["train"].attrs["encoder"] = json.dumps({**made, "max_length": 32})
    facts = collect(output_dir)
    assert any("made by 2 encoders or settings" in notice for notice in facts.notices)
    assert facts.max_length == 64  # the value of most files
    assert facts.totals.lines == 30


def test_documents_in_chunks_are_truncated_after_the_last_chunk(tmp_path: Path, tiny_files: ModelFiles) -> None:
    encoder = load_encoder(tiny_files, EncoderSettings(max_length=8, chunks=Chunks(most=4)), "cpu", 512)
    output_dir = make_outputs(tmp_path, tiny_files, encoder, {"a.jsonl": [{"text": "x " * n} for n in (5, 20, 20, 90)]})
    facts = collect(output_dir)
    assert facts.max_length == 2 + 4 * 6
    page = render(facts)
    assert "Median 22 tokens, 90 % of the documents have at most\n      26." in page
    assert "truncated at 26 tokens (25.0%)" in page
    assert "most 4, overlap 0" in page


def test_files_with_other_chunks_are_said_to_be_of_other_settings(write_outputs: WriteOutputs) -> None:
    output_dir = write_outputs(FILES)
    with h5py.File(output_dir / "embeddings/b/z.h5", "a") as file:
        made = json.loads(file["train"].attrs["request"])
        file["train"].attrs["request"] = json.dumps({**made, "chunks": {"most": 4, "overlap": 0}})
    assert collect(output_dir).notices[0].startswith("the embeddings were made by 2 encoders or settings")


def test_scores_of_two_sets_of_heads_are_not_mixed(write_outputs: WriteOutputs) -> None:
    one = write_outputs(FILES, HEADS)
    other = write_outputs({"c/w.jsonl": documents("w", 5)}, (head("education", 7),), "other")
    for name in ("annotated_data/c/w.jsonl", "annotated_data/.provenance/c/w.jsonl.json"):
        (one / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(other / name, one / name)
    facts = collect(one)
    assert facts.scores is not None
    assert (facts.scores.n, facts.totals.annotated) == (26, 31)
    assert any("scored by 2 sets of heads" in notice and "1 file left out" in notice for notice in facts.notices)


def test_files_of_an_earlier_release_are_shown_as_far_as_they_say(write_outputs: WriteOutputs) -> None:
    output_dir = write_outputs(FILES, HEADS)
    with h5py.File(output_dir / "embeddings" / "b" / "y.h5", "a") as file:
        del file["train"].attrs["statistics"]
    provenance = output_dir / "annotated_data" / ".provenance" / "b" / "y.jsonl.json"
    made = json.loads(provenance.read_text())
    del made["statistics"]
    provenance.write_text(json.dumps(made))
    shutil.rmtree(output_dir / "logs")
    facts = collect(output_dir)
    assert facts.totals.documents == 26
    assert facts.document_tokens.n == 12
    assert facts.scores is not None and facts.scores.n == 12
    said = " ".join(facts.notices)
    assert "1 file made by an earlier release" in said and "1 file annotated by an earlier release" in said
    assert "no record of a run" in said
    assert {row.status for row in facts.files} == {"on disk"}


def test_files_of_other_tools_count_as_documents(write_outputs: WriteOutputs) -> None:
    output_dir = write_outputs(FILES)
    with h5py.File(output_dir / "embeddings" / "plain.h5", "w") as file:
        file["train/embeddings"] = np.ones((4, 3), np.float32)
    facts = collect(output_dir)
    assert facts.totals.documents == 30
    assert any("1 file of embeddings made by another tool" in notice for notice in facts.notices)


def test_broken_files_are_named_and_left_out(write_outputs: WriteOutputs) -> None:
    output_dir = write_outputs(FILES, HEADS)
    (output_dir / "embeddings" / "b" / "y.h5").write_bytes(b"no HDF5")
    (output_dir / "annotated_data" / ".provenance" / "b" / "z.jsonl.json").write_text('{"documents": ')
    (output_dir / "logs" / "embed-one" / RUN).write_text("[]")
    facts = collect(output_dir)
    (notice,) = [notice for notice in facts.notices if "cannot be read" in notice]
    assert notice.startswith("2 files") and "y.h5" in notice
    assert facts.totals.annotated_files == 2


def test_a_run_before_its_first_file_is_a_report_too(tmp_path: Path) -> None:
    write_run(tmp_path / "logs" / "embed-one", "embed", [], has_end=False)
    facts = collect(tmp_path)
    assert facts.totals.documents == 0
    assert facts.runs[0].done == 0 and facts.files == []


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing to report in .*; give the output_dir of a job"):
        collect(tmp_path)


def test_logs_elsewhere_are_found_where_an_earlier_report_found_them(
    write_outputs: WriteOutputs, tmp_path: Path
) -> None:
    from mlfilter_core.run_report.write_report import write_report

    output_dir = write_outputs(FILES)
    shutil.move(output_dir / "logs", tmp_path / "elsewhere")
    assert collect(output_dir).runs == []
    write_report(output_dir, [tmp_path / "elsewhere"])
    assert [run.name for run in collect(output_dir).runs] == ["embed-one"]


def test_outputs_of_a_kind_that_another_package_brings_are_reported(
    write_outputs: WriteOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_toys(monkeypatch)
    output_dir = write_outputs(FILES, HEADS)
    before = collect(output_dir)
    (output_dir / "toys").mkdir()
    (output_dir / "toys" / "y.toy").write_text("a toy\nanother toy\n")
    done = {"file": "x", "status": "played", "documents": 9, "started": STARTED, "seconds": 5.0, "worker": "w"}
    write_run(output_dir / "logs" / "play-one", "play", [done], after_s=3000)
    facts = collect(output_dir)
    rows = {row.file: (row.status, row.documents) for row in facts.files if row.flow == "play"}
    assert rows == {"x": ("played", 9), "toys/y.toy": ("on disk", 2)}
    assert facts.totals == replace(before.totals, output_bytes=before.totals.output_bytes + 18)
    assert facts.runs[0].has_speed and facts.notices == []
    assert list(pictures_of(facts, "play")) == ["Toys"]
    assert '<th scope="row">play</th>' in render(facts)
