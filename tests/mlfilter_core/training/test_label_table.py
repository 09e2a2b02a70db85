from pathlib import Path

import pytest

from mlfilter_core.errors import ConfigError, SourceError, TrainingError
from mlfilter_core.training.label_table import label_files, read_labels
from tests.conftest import WriteLines


def test_labels_are_read_by_id(write_lines: WriteLines) -> None:
    path = write_lines("l.jsonl.gz", [{"id": "a", "score": 1}, {"document_id": 7, "id": "b", "score": 2.5}])
    assert read_labels([path], None, None).by_id == {"a": (1,), "7": (2.5,)}


def test_draws_of_an_annotator_count_as_their_mean(write_lines: WriteLines) -> None:
    lines = [
        {"document_id": "a", "scores": [1, None, 2]},
        {"id": "b", "scores": [None, "3"]},
        {"id": "c", "scores": [4]},
    ]
    table = read_labels([write_lines("annotations_x.jsonl", lines)], None, None)
    assert table.by_id == {"a": (1.5,), "c": (4,)}
    assert table.bad_lines.counts == {"missing_label": 1}


def test_draws_outside_the_scale_are_ignored(write_lines: WriteLines) -> None:
    lines = [{"id": "a", "scores": [5, 4, -1]}, {"id": "b", "scores": [-1, 9]}]
    table = read_labels([write_lines("annotations_x.jsonl", lines)], None, None, (0, 5))
    assert table.by_id == {"a": (4.5,)}
    assert table.bad_lines.counts == {"missing_label": 1}


def test_keys_may_be_named(write_lines: WriteLines) -> None:
    path = write_lines("l.jsonl", [{"meta": {"key": "a"}, "s": {"x": 1, "y": 2}}])
    assert read_labels([path], ("s.y", "s.x"), "meta.key").by_id == {"a": (2, 1)}


def test_lines_without_a_label_are_counted_by_reason(write_lines: WriteLines) -> None:
    lines = [b"{", b"", {"id": "a"}, {"id": "b", "score": "3"}, {"score": 1}, {"id": "c", "score": 1}]
    path = write_lines("l.jsonl", lines)
    table = read_labels([path], None, None)
    assert table.by_id == {"c": (1,)}
    assert table.bad_lines.counts == {"not_json": 1, "missing_label": 1, "bad_label": 1, "missing_key": 1}
    assert table.bad_lines.examples["not_json"][0].startswith(f"{path}:1: ")


def test_a_document_that_is_labelled_twice_alike_counts_once(write_lines: WriteLines) -> None:
    paths = [write_lines(f"{i}.jsonl", [{"id": "a", "score": 1}]) for i in range(2)]
    assert read_labels(paths, None, None).by_id == {"a": (1,)}


def test_contradicting_labels_are_refused_with_examples(write_lines: WriteLines) -> None:
    path = write_lines("l.jsonl", [{"id": i % 5, "score": i} for i in range(10)])
    message = r"5 documents are labelled twice, and differently: 0 \(0 and 5, .*l.jsonl:6\), 1 .*aggregate-scores"
    with pytest.raises(TrainingError, match=message):
        read_labels([path], None, None)


def test_a_file_without_labels_is_refused_with_its_first_line(write_lines: WriteLines) -> None:
    with pytest.raises(
        TrainingError, match=r'1 missing_label \(.*l.jsonl:1: neither "label" nor "score".*set label_key'
    ):
        read_labels([write_lines("l.jsonl", [{"id": "a", "scores": {"x": 1}}])], None, None)
    with pytest.raises(TrainingError, match="it is empty"):
        read_labels([write_lines("l.jsonl", [])], None, None)


def test_a_folder_stands_for_all_files_below_it(write_lines: WriteLines, tmp_path: Path) -> None:
    paths = [write_lines(f"labels/{name}.jsonl", []) for name in ("a/x", "b")]
    assert label_files(tmp_path / "labels") == paths
    assert label_files(paths[0]) == paths[:1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"labels_path: no file below .*empty"):
        label_files(tmp_path / "empty")
    with pytest.raises(SourceError, match="fix its path"):
        read_labels(label_files(tmp_path / "nowhere.jsonl"), None, None)
