import random
from pathlib import Path

import numpy as np

from mlfilter_core.run_report.facts import FileFacts
from mlfilter_core.run_report.file_rows import RecordedFiles
from mlfilter_core.run_report.run_records import RunRecord, read_run_records
from mlfilter_core.verification.output_kinds import Output
from mlfilter_core.verification.outputs import Outputs
from tests.output_folders import write_run

STATES = ("embedded", "skipped", "failed")


def records(folder: Path, n_runs: int, seed: int) -> list[RunRecord]:
    """Runs over some of ten files, in any order, that finished, skipped or failed them."""
    generator = random.Random(seed)
    for i in range(n_runs):
        names = generator.sample([f"{place}.jsonl" for place in range(10)], generator.randint(1, 10))
        rows = [
            {"file": name, "status": generator.choice(STATES), "documents": i, "output": f"{folder}/out/{i}-{name}"}
            for name in names
        ]
        flow = generator.choice(["embed", "annotate"])
        write_run(folder / "logs" / f"{flow}-{i}", flow, rows, after_s=10 * i, output_dir=folder / "out")
    return read_run_records(folder / "out", folder / "logs")


def expected_rows(found: list[RunRecord]) -> list[FileFacts]:
    rows: dict[tuple[str, str], FileFacts] = {}
    for record in found:
        for file in record.files:
            key = (record.run.flow, file.file)
            if key not in rows or (rows[key].status == "skipped" and file.status != "failed"):
                rows[key] = file
    return [rows[key] for key in sorted(rows)]


def test_each_file_has_the_row_of_the_latest_run_that_did_something_with_it(tmp_path: Path) -> None:
    for seed in range(20):
        found = records(tmp_path / str(seed), n_runs=5, seed=seed)
        rows, expected = RecordedFiles(found).with_others({}), expected_rows(found)
        assert rows == expected
        assert [rows[i] for i in range(len(rows))] == rows[:] == expected
        n_failed = RecordedFiles(found).n_failed()
        assert n_failed == {
            flow: sum(row.status == "failed" for row in expected if row.flow == flow) for flow in n_failed
        }


def test_outputs_of_finished_files_are_recorded_and_others_get_rows_in_their_places(tmp_path: Path) -> None:
    rows = [
        {"file": "b.jsonl", "status": "embedded", "documents": 3, "output": f"{tmp_path}/out/embeddings/b.h5"},
        {"file": "c.jsonl", "status": "failed", "reason": "why", "output": f"{tmp_path}/out/embeddings/c.h5"},
    ]
    write_run(tmp_path / "logs" / "embed-one", "embed", rows, output_dir=tmp_path / "out")
    recorded = RecordedFiles(read_run_records(tmp_path / "out", tmp_path / "logs"))
    outputs = Outputs(lambda path: Output(path, path))
    for name in "bcd":
        outputs.add(f"embeddings/{name}.h5")
    outputs.pack()
    np.testing.assert_array_equal(recorded.are_finished(outputs), [True, False, False])
    others = {flow: [FileFacts(name, flow, "", "on disk")] for flow, name in (("embed", "bb"), ("annotate", "z"))}
    found = recorded.with_others(others)
    assert [(row.flow, row.file) for row in found] == [
        ("annotate", "z"),
        ("embed", "b.jsonl"),
        ("embed", "bb"),
        ("embed", "c.jsonl"),
    ]
    assert found[1].output == "embeddings/b.h5"


def test_rows_stay_readable_when_a_run_that_ends_replaces_them(tmp_path: Path) -> None:
    found = records(tmp_path, n_runs=1, seed=0)
    rows, expected = RecordedFiles(found).with_others({}), expected_rows(found)
    log = next((tmp_path / "logs").glob("*/files.jsonl"))
    log.rename(log.with_name("older"))
    log.write_text("{}\n")
    assert rows == expected
