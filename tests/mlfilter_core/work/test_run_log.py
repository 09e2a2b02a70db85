import json
import logging
import resource
import signal
import sys
from pathlib import Path

import pytest

from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.errors import ConfigError
from mlfilter_core.files.claims import is_claimed
from mlfilter_core.work.run_log import JOB, ROWS, RUN, rows_written, run_log


@pytest.fixture
def job(tmp_path: Path) -> EmbeddingJob:
    params = {
        "input_dir": "in",
        "output_dir": str(tmp_path / "out"),
        "embedding_model": "encoder",
        "text_field": "text",
    }
    return load_job({"params": params, "local_settings": {"workers": 2}}, EmbeddingJob)


def test_a_run_leaves_each_file_as_soon_as_it_is_finished(tmp_path: Path, job: EmbeddingJob) -> None:
    with pytest.raises(KeyboardInterrupt), run_log(tmp_path, "embed", tmp_path / "out", job, 3, 1) as record:
        assert is_claimed(tmp_path / RUN) is True
        record.add({"file": "ä.jsonl", "status": "embedded", "documents": 5})
        assert json.loads((tmp_path / ROWS).read_text())["file"] == "ä.jsonl"
        raise KeyboardInterrupt
    about = json.loads((tmp_path / RUN).read_text())
    assert (about["flow"], about["files"], about["finished_before"]) == ("embed", 3, 1)
    assert about["error"] == "KeyboardInterrupt: "
    assert is_claimed(tmp_path / RUN) is False
    assert len((tmp_path / ROWS).read_text().splitlines()) == 1


def test_the_job_that_it_leaves_is_the_job_itself(tmp_path: Path, job: EmbeddingJob) -> None:
    with run_log(tmp_path, "embed", tmp_path / "out", job, 1, 0) as record:
        record.end(12.5, 0)
    assert load_job(tmp_path / JOB, EmbeddingJob) == job
    assert json.loads((tmp_path / RUN).read_text())["seconds"] == 12.5


def test_another_attempt_keeps_what_the_first_left(tmp_path: Path, job: EmbeddingJob) -> None:
    for name in ("one", "two", "three"):
        with run_log(tmp_path, "embed", tmp_path / "out", job, 1, 0) as record:
            record.add({"file": name})
    assert [json.loads((tmp_path / f"earlier-{i}" / ROWS).read_text())["file"] for i in (1, 2)] == ["one", "two"]
    assert json.loads((tmp_path / ROWS).read_text())["file"] == "three"


def test_a_record_that_cannot_be_written_costs_no_work(
    tmp_path: Path, job: EmbeddingJob, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "a-file"
    folder.write_text("no folder")
    with caplog.at_level(logging.WARNING), run_log(folder, "embed", tmp_path / "out", job, 2, 0) as record:
        record.add({"file": "x"})
        record.end(1.0, 0)
    assert len([line for line in caplog.messages if "the record of this run is incomplete" in line]) == 1


def test_a_line_that_fits_the_disk_in_part_is_left_out_and_later_ones_follow_once_there_is_room(
    tmp_path: Path, job: EmbeddingJob, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), run_log(tmp_path, "embed", tmp_path / "out", job, 9, 0) as record:
        record.add({"file": "a"})
        size = (tmp_path / ROWS).stat().st_size
        no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal_before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, no_limit[1]))
        try:
            record.add({"file": "b"})
            record.add({"file": "c"})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)
            signal.signal(signal.SIGXFSZ, signal_before)
        record.add({"file": "d"})
    assert [json.loads(line)["file"] for line in (tmp_path / ROWS).read_text().splitlines()] == ["a", "d"]
    assert len([line for line in caplog.messages if "the record of this run is incomplete" in line]) == 1


def test_what_ended_a_run_before_its_files_is_recorded(tmp_path: Path, job: EmbeddingJob) -> None:
    with pytest.raises(ConfigError), run_log(tmp_path, "embed", tmp_path / "out", job, 3, 0):
        raise ConfigError("no such key")
    assert json.loads((tmp_path / RUN).read_text())["error"] == "ConfigError: no such key"


def test_a_command_that_is_no_text_is_recorded_all_the_same(
    tmp_path: Path, job: EmbeddingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["ml_filter", "M\udcfcller.yaml"])
    with run_log(tmp_path, "embed", tmp_path / "out", job, 3, 0):
        pass
    assert json.loads((tmp_path / RUN).read_text())["command"] == ["ml_filter", "M\\udcfcller.yaml"]


def test_the_rows_at_the_end_replace_those_on_the_way(tmp_path: Path) -> None:
    (tmp_path / ROWS).write_text('{"file": "half')
    rows = [{"file": "\udc80"}, {"file": "b"}]  # a name that is no UTF-8
    with rows_written(tmp_path) as written:
        assert list(written(rows)) == rows
    assert [json.loads(line)["file"] for line in (tmp_path / ROWS).read_text().splitlines()] == ["\udc80", "b"]
