import re
from pathlib import Path

import pytest

from mlfilter_core.corpus.documents import BadRecordError
from mlfilter_core.errors import AnnotationError, ConfigError
from mlfilter_core.evaluation.input_files import (
    annotator_of_name,
    annotator_of_records,
    find_draw_files,
    find_inputs,
    parse_draws,
    raw_data_file,
)
from tests.conftest import WriteLines
from tests.mlfilter_core.evaluation.conftest import draw_record


def test_both_names_of_ml_filter_are_draw_files(tmp_path: Path) -> None:
    names = [
        "de/annotations_edu_de_gemma.jsonl",
        "en/00055__annotations_meta-llama--Llama_edu_en.jsonl.gz",
        "en/annotations__edu__en__gt.jsonl",
    ]
    others = ["en/00055.jsonl", "en/my_annotations_x.jsonl", "annotations_x.json"]
    for name in names + others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in find_draw_files(tmp_path)] == names


def test_where_there_are_none_it_is_said_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is named annotations_\*\.jsonl or .*; there is no \.jsonl file"):
        find_draw_files(tmp_path)
    (tmp_path / "x.jsonl").touch()
    with pytest.raises(
        ConfigError, match=r"other \.jsonl files: 1, such as .*/x\.jsonl\. To use the scores in annotated"
    ):
        find_draw_files(tmp_path)


def test_scores_that_are_not_made_yet_name_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"no \.jsonl file below {tmp_path}, .*; run `ml_filter annotate` first"):
        find_inputs(tmp_path, "--input-directory", written_by="annotate")
    with pytest.raises(ConfigError, match=r"compressed or not$"):
        find_inputs(tmp_path, "--path-to-ground-truth-file")


def test_a_record_has_its_id_as_a_string_and_its_draws_as_they_are() -> None:
    assert parse_draws(draw_record(17, [1, None, "2"], raw="a/b.jsonl")) == ("17", [1, None, "2"])
    assert raw_data_file(draw_record(17, [], raw="a/b.jsonl")) == "a/b.jsonl"


@pytest.mark.parametrize("scores", [None, 3, {"mean": 2}, "1, 2"])
def test_a_record_without_a_list_of_scores_is_a_bad_record(scores: object) -> None:
    with pytest.raises(BadRecordError, match=r"no_scores: .* is missing or not a list"):
        parse_draws(draw_record("a", scores))


@pytest.mark.parametrize(
    "record", [{}, {"meta_information": {"raw_data_file_path": 3}}, draw_record("a", [], raw="a\0b")]
)
def test_a_record_without_a_raw_file_is_a_bad_record(record: dict[str, object]) -> None:
    with pytest.raises(BadRecordError, match=r"no_raw_data_file: .* is missing or not a path"):
        raw_data_file(record)


@pytest.mark.parametrize(
    ("name", "annotator"),
    [("annotations__edu__en__gt.jsonl", "gt"), ("7__annotations_meta--L_edu_en.jsonl.gz", "en"), ("x.jsonl", "x")],
)
def test_a_name_ends_with_the_annotator(name: str, annotator: str) -> None:
    assert annotator_of_name(Path("a_b") / name) == annotator


def test_records_name_the_model_that_made_them(write_lines: WriteLines) -> None:
    records = [b"{broken", {"id": "a"}, draw_record("b", [1], model="meta/L"), draw_record("c", [1], model="meta/L")]
    assert annotator_of_records(write_lines("annotations_x.jsonl", records)) == "meta__L"
    older = write_lines("annotations_y.jsonl", [{"id": "a", "meta_information": {"model": "test"}}])
    assert annotator_of_records(older) == "test"
    assert annotator_of_records(write_lines("annotations_z.jsonl", [{"id": "a"}])) == "z"


def test_two_models_in_one_file_are_refused(write_lines: WriteLines) -> None:
    path = write_lines(
        "annotations_x.jsonl", [draw_record("a", [1], model="m"), {"id": 1}, draw_record("b", [1], model="n")]
    )
    expected = f"{path}:3: the annotator is n, but in line 1 it is m; split the file"
    with pytest.raises(AnnotationError, match=re.escape(expected)):
        annotator_of_records(path)
