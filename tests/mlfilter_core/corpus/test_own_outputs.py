import logging
from pathlib import Path

import pytest

from mlfilter_core.config.annotation import ANNOTATED_DIR
from mlfilter_core.config.clustering import CLUSTERS_DIR
from mlfilter_core.config.deduplication import DEDUPLICATED_DIR, DUPLICATES_DIR
from mlfilter_core.config.filtering import DROPPED_DIR, FILTERED_DIR
from mlfilter_core.config.training import HEADS_DIR
from mlfilter_core.corpus.own_outputs import OUTPUT_FOLDERS, WITH_PROVENANCE
from mlfilter_core.corpus.source_files import find_sources
from mlfilter_core.errors import ConfigError
from mlfilter_core.run_report.collect import REPORT_DIR
from mlfilter_core.verification.embedding_files import REJECTED_DIR
from mlfilter_core.verification.verify import LOGS_DIR

OUTPUTS = ("annotated_data/x.jsonl", "filtered/en/x.jsonl", "rejected/x.jsonl", "heads/q.held_out.jsonl")


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"text": "a"}\n')


def write_outputs(folder: Path) -> None:
    """Writes what jobs leave in their output folder."""
    write(folder, *OUTPUTS, "annotated_data/.provenance/x.jsonl.json", "logs/embed-wise-owl/run.json")
    write(folder, "logs/embed-wise-owl/rows.jsonl")


def found(folder: Path, output_dir: Path) -> list[str]:
    return [file.relative for file in find_sources(folder, "**/*", output_dir)]


def test_the_folders_are_those_of_the_jobs() -> None:
    assert WITH_PROVENANCE == (ANNOTATED_DIR, FILTERED_DIR, DROPPED_DIR)
    jobs = {CLUSTERS_DIR, DUPLICATES_DIR, DEDUPLICATED_DIR, REJECTED_DIR, HEADS_DIR, LOGS_DIR, REPORT_DIR}
    assert set(OUTPUT_FOLDERS) == {*WITH_PROVENANCE, *jobs}


@pytest.mark.parametrize("output_dir", ["", "out", "deep/in/it"])
def test_the_job_s_own_outputs_are_left_out_with_a_line(
    output_dir: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "a.jsonl", "heads.jsonl", "news/logs/b.jsonl")
    write_outputs(tmp_path / output_dir)
    with caplog.at_level(logging.WARNING):
        assert found(tmp_path, tmp_path / output_dir) == ["a.jsonl", "heads.jsonl", "news/logs/b.jsonl"]
    assert "are outputs of jobs, and left out: " in caplog.text


def test_before_the_first_run_into_the_corpus_folder_nothing_of_that_name_is_read(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "rejected/b.jsonl")
    assert found(tmp_path, tmp_path) == ["a.jsonl"]


def test_outputs_of_other_jobs_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "de/b.jsonl")
    write_outputs(tmp_path / "de/out")
    write(tmp_path, "other/filtered/c.jsonl", "other/filtered/.provenance/c.jsonl.json")
    assert found(tmp_path, tmp_path.parent / "elsewhere") == ["a.jsonl", "de/b.jsonl"]


def test_exports_are_left_out_whatever_their_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "de/vectors/x.parquet", "de/vectors/fr/y.parquet", "de/vectors/.provenance/export.json")
    write(tmp_path, "de/vectors-of-lines.jsonl")
    assert found(tmp_path, tmp_path.parent / "elsewhere") == ["a.jsonl", "de/vectors-of-lines.jsonl"]
    assert found(tmp_path / "de/vectors", tmp_path.parent / "elsewhere") == ["fr/y.parquet", "x.parquet"]


def test_folders_that_only_have_such_names_are_read(tmp_path: Path) -> None:
    names = [f"{name}/x.jsonl" for name in sorted(OUTPUT_FOLDERS)]
    write(tmp_path, *names)
    assert found(tmp_path, tmp_path.parent / "elsewhere") == names


def test_outputs_are_read_where_a_job_asks_for_their_folder(tmp_path: Path) -> None:
    write_outputs(tmp_path)
    assert found(tmp_path / "filtered", tmp_path / "again") == ["en/x.jsonl"]
    assert found(tmp_path / "filtered", tmp_path) == ["en/x.jsonl"]


def test_a_corpus_of_outputs_alone_has_no_sources(tmp_path: Path) -> None:
    write_outputs(tmp_path)
    with pytest.raises(ConfigError, match="no file below"):
        found(tmp_path, tmp_path)
