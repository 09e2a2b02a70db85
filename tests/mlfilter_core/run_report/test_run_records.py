import json
import shutil
from pathlib import Path

from mlfilter_core.run_report.run_records import read_run_records
from mlfilter_core.work.run_log import JOB, ROWS, RUN
from tests.output_folders import STARTED, write_run


def row(name: str, worker: str, started: float, **facts: object) -> dict[str, object]:
    waited = {"reading": 9.0, "encoding": 1.0}
    about = {"file": name, "status": "embedded", "documents": 100, "tokens": 5000, "seconds": 10.0, "waited": waited}
    return {**about, "encoder": "bfloat16 on cuda (measured)", "worker": worker, "started": started, **facts}


def test_a_record_tells_what_each_worker_did(tmp_path: Path) -> None:
    rows = [row("a", "w1", STARTED), row("b", "w2", STARTED + 1), row("c", "w1", STARTED + 15)]
    write_run(tmp_path / "embed-one", "embed", rows)
    (record,) = read_run_records(tmp_path.parent, tmp_path)
    one, two = record.run.workers
    assert (one.name, one.files, one.documents, one.busy_s, one.held_s) == ("w1", 2, 200, 20.0, 25.0)
    assert (two.name, two.files, two.tokens, two.held_s) == ("w2", 1, 5000, 10.0)
    assert (record.run.busy_worker_s, record.run.held_worker_s) == (30.0, 35.0)
    assert record.run.startup_s == 5.5  # 5 and 6 seconds after the run began
    assert record.run.busy_s == {"reading": 3.0, "encoding": 27.0}
    assert record.run.waited_s == {"reading": 27.0, "encoding": 3.0}
    assert record.run.encoders == ["bfloat16 on cuda"] and record.run.uses_gpus


def test_runs_come_latest_first_and_earlier_attempts_are_runs_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / "embed-one", "embed", [row("a", "w", STARTED + 100)], after_s=100)
    write_run(tmp_path / "embed-one" / "earlier-1", "embed", [row("b", "w", STARTED)], has_end=False)
    write_run(tmp_path / "annotate-one", "annotate", [row("a.h5", "w", STARTED + 200)], after_s=200)
    found = [(record.run.name, record.run.state) for record in read_run_records(tmp_path.parent, tmp_path)]
    assert found == [
        ("annotate-one", "finished"),
        ("embed-one", "finished"),
        ("embed-one/earlier-1", "killed"),
    ]


def test_a_run_of_an_earlier_release_is_told_by_its_rows(tmp_path: Path) -> None:
    folder = tmp_path / "train_head-groovy-pug"
    folder.mkdir()
    (folder / ROWS).write_text('{"file": "a", "status": "trained", "documents": 5, "seconds": 1.5}\n\n[1]\n')
    (record,) = read_run_records(tmp_path.parent, tmp_path)
    assert (record.run.flow, record.run.state, record.run.done, record.run.started) == (
        "train_head",
        "finished",
        1,
        None,
    )
    assert (record.run.workers, record.run.rates, record.run.command) == ([], None, "")


def test_a_copy_of_a_folder_is_the_same_run(tmp_path: Path) -> None:
    write_run(tmp_path / "logs" / "embed-one", "embed", [row("a", "w", STARTED)])
    shutil.copytree(tmp_path / "logs", tmp_path / "copy")
    assert len(read_run_records(tmp_path, tmp_path / "logs", [tmp_path / "copy", tmp_path / "absent"])) == 1


def test_in_a_folder_of_logs_that_others_use_only_the_runs_of_this_output_folder_count(tmp_path: Path) -> None:
    for output, name in (("a", "embed-one"), ("b", "embed-two")):
        write_run(tmp_path / "logs" / name, "embed", [row("x", "w", STARTED)], output_dir=tmp_path / output)
    (tmp_path / "logs" / "embed-three").mkdir()
    (tmp_path / "logs" / "embed-three" / ROWS).write_text(json.dumps(row("x", "w", STARTED)) + "\n")
    found = read_run_records(tmp_path / "b", tmp_path / "b" / "logs", [tmp_path / "logs"])
    assert [record.run.name for record in found] == ["embed-two"]


def test_what_an_earlier_run_had_done_of_a_file_is_not_this_run_s(tmp_path: Path) -> None:
    write_run(tmp_path / "embed-one", "embed", [row("a", "w", STARTED, resumed=80)])
    ((run, _),) = [(record.run, record.files) for record in read_run_records(tmp_path.parent, tmp_path)]
    assert (run.documents, run.tokens, run.workers[0].documents, run.workers[0].tokens) == (20, 1000, 20, 1000)


def test_workers_that_replace_others_do_not_count_as_late(tmp_path: Path) -> None:
    rows = [row("a", "w1", STARTED), row("b", "w2", STARTED + 1), row("c", "w3", STARTED + 500)]
    write_run(tmp_path / "embed-one", "embed", rows)
    assert read_run_records(tmp_path.parent, tmp_path)[0].run.startup_s == 5.5


def test_an_error_that_ended_a_run_and_names_that_are_no_text_are_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "embed-one", "embed", [row("m\udcfcll.jsonl", "w", STARTED)], has_end=False)
    about = json.loads((tmp_path / "embed-one" / RUN).read_text())
    (tmp_path / "embed-one" / RUN).write_text(json.dumps({**about, "seconds": 5, "error": "ConfigError: no key"}))
    (record,) = read_run_records(tmp_path.parent, tmp_path)
    assert (record.run.state, record.run.error) == ("ended by an error", "ConfigError: no key")
    assert record.files[0].file == "m\\udcfcll.jsonl"


def test_a_run_that_started_nothing_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "embed-finished-before"
    folder.mkdir()
    (folder / ROWS).write_text(json.dumps({"file": "a", "status": "skipped", "documents": 5}) + "\n")
    assert read_run_records(tmp_path.parent, tmp_path) == []


def test_the_command_runs_the_job_that_the_run_left(tmp_path: Path) -> None:
    folder = tmp_path / "it's here" / "embed-one"
    write_run(folder, "embed", [])
    (folder / JOB).write_text("params: {}\n")
    (record,) = read_run_records(tmp_path, folder.parent)
    quoted = "'" + str(folder / JOB).replace("'", "'\"'\"'") + "'"
    expected = f"ml_filter embed --config {quoted} --set params.output_dir=ANOTHER_FOLDER"
    assert record.run.command == expected
    (folder / RUN).write_text(json.dumps({"flow": "filter", "started": STARTED, "seconds": 1}))
    assert read_run_records(tmp_path, folder.parent)[0].run.command.startswith("ml_filter filter --config ")
