import json
from dataclasses import replace
from pathlib import Path

import pytest

from flows.running import report as report_module
from flows.running.overview import MAX_ARTIFACT_ROWS, overview_of
from flows.running.report import (
    MAX_PRINTED_ROWS,
    FilesFailedError,
    Page,
    RunReport,
    _markdown,
    make_page,
    print_report,
    write_rows,
)
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.run_report import read_outputs
from mlfilter_core.work.workload import row_of


def report(n_files: int, failures: dict[str, str] | None = None) -> RunReport:
    waited = {"reading": 1.5, "tokenizing": 1.0, "encoding": 0.25, "writing": 1.75}
    counts = (1003, 1000, 2, 1, 5, 0, 123_456, 3)
    files = [
        EmbedReport(f"{i}.jsonl", f"{i}.h5", "embedded", *counts, {"not_json": 2}, 400, 2.0, waited, "float32 on cpu")
        for i in range(n_files)
    ]
    return RunReport("embed", Path("out"), Path("logs"), 10.0, files, failures or {})


def test_totals_are_the_sums_over_the_finished_files() -> None:
    totals = report(3, {"bad.jsonl": "reason"}).totals()
    assert totals == {
        "files": 3,
        "failed": 1,
        "skipped": 0,
        "lines": 3009,
        "documents": 3000,
        "rejected": 6,
        "truncated": 15,
        "duplicate_ids": 0,
        "tokens": 370_368,
        "out_of_memory": 9,
        "resumed": 1200,
        "seconds": 10.0,
    }


def test_the_printed_table_has_a_row_for_each_file_and_their_sum(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(2, {"bad.jsonl": "reason"}))
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert ["bad.jsonl", "failed"] in lines
    assert ["1.jsonl", "embedded", "1,003", "1,000", "2", "5", "123,456", "2.0", "300.0"] in lines
    assert ["total", "2,006", "2,000", "4", "10", "246,912"] in lines
    assert ["embed:", "3", "files", "in", "10.0", "s:", "1", "failed,", "2", "embedded"] in lines
    assert ["results:", "out"] in lines


def test_the_report_says_what_limited_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(replace(report(2), on_nodes=["node gpu07 is not used again in this run: a worker died"]))
    shown = capsys.readouterr().out
    assert "node gpu07 is not used again in this run: a worker died\n" in shown
    waited = "reading 3.0, tokenizing 2.0, encoding 0.5, writing 3.5; encoding is the bottleneck"
    assert f"seconds that each stage waited for another: {waited}\n" in shown
    assert shown.count("encoder: float32 on cpu\n") == 1
    assert "800 documents had been encoded by a run that was interrupted\n" in shown
    assert "memory ran out 6 times, and batches were divided" in shown


def test_the_report_says_what_helps_where_the_encoder_waited_for_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    run = report(2)
    waited = {"reading": 1.5, "tokenizing": 0.25, "encoding": 1.0, "writing": 1.75}
    print_report(replace(run, reports=[replace(file, waited=waited) for file in run.reports]))
    shown = capsys.readouterr().out
    assert "tokenizing is the bottleneck\n" in shown
    assert "the encoder waited 50 % of the time, mostly for tokens: give each worker more cores" in shown


def test_a_long_table_shows_the_files_that_tell_something(capsys: pytest.CaptureFixture[str]) -> None:
    run = report(MAX_PRINTED_ROWS + 7, {"bad.jsonl": "reason"})
    files = [replace(file, seconds=float(i), rejected=1000 if i == 3 else 0) for i, file in enumerate(run.reports)]
    run = replace(run, reports=files)
    rows = run.telling_rows(4)
    assert [row["file"] for row in rows] == ["bad.jsonl", "3.jsonl", "46.jsonl", "45.jsonl"]
    assert len(run.telling_rows(100)) == MAX_PRINTED_ROWS + 8
    print_report(run)
    assert (
        "40 of 48 files: the failed ones, those with most rejected lines, and the slowest; files.jsonl"
        in capsys.readouterr().out
    )


def test_the_error_tells_failed_files_and_reasons() -> None:
    error = FilesFailedError(report(3, {"bad.jsonl": "bad.jsonl:3: broken"}))
    assert str(error).startswith("1 of 4 files failed")
    assert "bad.jsonl: bad.jsonl:3: broken" in str(error)


def test_the_report_for_a_browser_is_named_beside_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(1))
    assert "report:" not in capsys.readouterr().out
    print_report(replace(report(1), page=Path("out/report/index.html")))
    assert "report:  out/report/index.html\n" in capsys.readouterr().out


def test_rows_say_who_did_a_file_and_when() -> None:
    done, skipped = (replace(report(1).reports[0], status=status) for status in ("embedded", "skipped"))
    row = row_of(replace(done, worker="worker-1", started=12.5))
    assert (row["worker"], row["started"]) == ("worker-1", 12.5)
    assert not {"worker", "started"} & set(row_of(skipped))


def test_the_summary_shows_pictures_below_what_failed_whatever_they_are_called() -> None:
    summary = _markdown(report(1, {"bad.jsonl": "reason"}), {"score_a](x)<b>": "data:image/svg+xml;base64,AA"})
    assert summary.index("## Failed") < summary.index("data:image")
    assert r"![score\_a\](x)\<b\>](data:image/svg+xml;base64,AA)" in summary


def test_rows_are_written_and_looked_over_in_one_pass(tmp_path: Path) -> None:
    run = replace(report(3, {"bad.jsonl": "reason"}), logs=tmp_path)
    write_rows(run)
    rows = [json.loads(line) for line in (tmp_path / "files.jsonl").read_text().splitlines()]
    assert rows == list(run.rows())
    assert [row["file"] for row in rows] == ["bad.jsonl", "0.jsonl", "1.jsonl", "2.jsonl"]
    assert replace(run, page=tmp_path).overview is run.overview


def test_of_very_many_files_the_most_telling_ones_are_those_of_all() -> None:
    """Rows that come in ascending, descending and mixed order, many more than are kept."""
    n = 5 * MAX_ARTIFACT_ROWS
    orders = [list(range(n)), list(range(n))[::-1], [i * 7919 % n for i in range(n)]]
    for seconds in orders:
        rows = [{"file": f"{i}", "status": "embedded", "seconds": float(s)} for i, s in enumerate(seconds)]
        overview = overview_of(rows, ())
        told = overview.telling_rows(MAX_PRINTED_ROWS)
        assert told == sorted(rows, key=lambda row: -row["seconds"])[:MAX_PRINTED_ROWS]
        assert len(overview.telling_rows(MAX_ARTIFACT_ROWS)) == MAX_ARTIFACT_ROWS


def test_a_report_that_would_open_very_many_outputs_is_left_to_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(report_module, "MOST_OPENED", 2)
    for name in ("MOST_READ", "MOST_SAMPLED"):
        monkeypatch.setattr(read_outputs, name, 1)
    (tmp_path / "embeddings").mkdir()
    for i in range(4):
        (tmp_path / "embeddings" / f"{i}.h5").touch()
    with caplog.at_level("INFO"):
        assert make_page("embed", tmp_path, tmp_path / "logs") == Page()
    assert "the report on 4 outputs is not written at the end of a run, as it would open more than 2" in caplog.text
    assert f"`ml_filter report {tmp_path}` does, once" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} - {"logs"} == {"embeddings"}  # fonts may be kept with the logs
