import json
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from mlfilter_core.corpus.lines import Line
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import AnnotationError
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering import make_survey as make_survey_module
from mlfilter_core.filtering.annotated_file import lines_of as lines_of_file
from mlfilter_core.filtering.make_survey import make_survey
from mlfilter_core.filtering.survey import (
    SurveyRequest,
    load_survey,
)
from tests.conftest import TINY_DIM, WriteLines
from tests.mlfilter_core.filtering.conftest import Filter, annotated_files, lines_of, request_for


def test_a_survey_has_the_scores_tokens_and_groups_of_every_line(parameters: Filter) -> None:
    params = parameters(keep={"scores": {"good": None, "score_fun": None}, "per": "language"})
    request = SurveyRequest.of(params)
    (file, _) = annotated_files(params)
    report = make_survey(file, request)
    assert (report.documents, report.status) == (30, "surveyed")
    survey = load_survey(file, request)
    lines = lines_of(params.annotated_directory, "a/x.jsonl")
    assert survey.scores_of("good").tolist() == [np.float32(line["score_good"]) for line in lines]
    assert survey.scores_of("score_fun").tolist() == [np.float32(line["score_fun"]) for line in lines]
    with EmbeddingFile(params.output_dir / "embeddings" / "a" / "x.h5", "train") as embeddings:
        assert survey.tokens.tolist() == embeddings.array("n_tokens", slice(None)).tolist()
    # The language is in the embeddings, not in the lines.
    assert [survey.groups[code] for code in survey.group] == ["de" if i % 3 else "en" for i in range(30)]


def test_lines_of_other_tools_are_surveyed_without_embeddings(write_lines: WriteLines, tmp_path: Path) -> None:
    values = [1, 2.5, None, "3", float("nan"), float("inf"), True, 1e300]
    lines = [{"id": i, "q": value, "meta": {"lang": "de"}, "n_tokens": i} for i, value in enumerate(values)]
    path = write_lines("x.jsonl", [*(json.dumps(line).encode() for line in lines), b"", b'{"id": 9}'])
    file, request = TaskFile("x.jsonl", "x", path.parent), request_for(tmp_path, per="meta.lang")
    make_survey(file, request)
    survey = load_survey(file, request)
    np.testing.assert_array_equal(survey.scores_of("q"), [1, 2.5, *[np.nan] * 4, 1, np.nan, np.nan])
    assert survey.tokens.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, -1]
    assert [survey.groups[code] for code in survey.group] == ["de"] * 8 + [""]


def test_a_file_that_changes_while_it_is_surveyed_is_an_error(
    write_lines: WriteLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines("x.jsonl", [{"q": 1}, {"q": 2}])

    def lines_of_a_file_that_is_replaced(path: Path) -> Iterator[Line]:
        lines = list(lines_of_file(path))
        path.write_text('{"q": 3}\n{"q": 4}\n')
        yield from lines

    monkeypatch.setattr(make_survey_module, "lines_of", lines_of_a_file_that_is_replaced)
    with pytest.raises(AnnotationError, match=r"x.jsonl was changed while it was read; run the job again once"):
        make_survey(TaskFile("x.jsonl", "x", path.parent), request_for(tmp_path))
    assert not (tmp_path / "surveys" / "x.npz").exists()


def test_a_score_may_begin_in_any_line_and_tokens_may_be_written_as_floats(
    write_lines: WriteLines, tmp_path: Path
) -> None:
    path = write_lines("x.jsonl", [{"id": 1, "n_tokens": 3.0}, {"score_q": 2, "n_tokens": 2.5}, {"n_tokens": 2**70}])
    file = TaskFile("x.jsonl", "x", path.parent)
    make_survey(file, request_for(tmp_path))
    survey = load_survey(file, request_for(tmp_path))
    np.testing.assert_array_equal(survey.scores_of("q"), [np.nan, 2, np.nan])
    assert survey.tokens.tolist() == [3, -1, -1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"q": 1}, b"{"], r"x.jsonl:2: .*; annotate the file again"),
        ([{"score_r": 1, "id": 2}], r'there is no score "q" nor "score_q"; the lines have: score_r, id'),
        ([{"q": 1, "score_q": 2}], r'a line has both "q" and "score_q"; give params.keep the latter'),
        (
            [{"q": 1, "k": i} for i in range(65537)],
            r'params.keep.per: "k" has more than 65,536 values; name a key that',
        ),
        (
            [{"q": 1, "k": f"{i:01001}"} for i in range(257)],
            r'params.keep.per: "k" has more than 256 values, and long ones; name a key that',
        ),
    ],
)
def test_invalid_lines_are_an_error(lines: list[object], message: str, write_lines: WriteLines, tmp_path: Path) -> None:
    path = write_lines("x.jsonl", lines)
    with pytest.raises(AnnotationError, match=message):
        make_survey(TaskFile("x.jsonl", "x", path.parent), request_for(tmp_path, per="k"))


@pytest.mark.parametrize(("n_groups", "dtype"), [(256, np.uint8), (257, np.uint16), (65536, np.uint16)])
def test_groups_are_stored_in_as_few_bytes_as_they_need(
    n_groups: int, dtype: type[np.generic], write_lines: WriteLines, tmp_path: Path
) -> None:
    path = write_lines("x.jsonl", [{"q": 1, "k": i % n_groups} for i in range(n_groups + 3)])
    file, request = TaskFile("x.jsonl", "x", path.parent), request_for(tmp_path, per="k")
    make_survey(file, request)
    survey = load_survey(file, request)
    assert survey.group.dtype == dtype
    assert [survey.groups[code] for code in survey.group] == [str(i % n_groups) for i in range(n_groups + 3)]


def test_groups_are_counted_while_lines_are_read(write_lines: WriteLines, tmp_path: Path) -> None:
    path = write_lines("x.jsonl", [*({"q": 1, "k": i} for i in range(65537)), b"{"])
    with pytest.raises(AnnotationError, match=r'params.keep.per: "k" has more than 65,536 values'):
        make_survey(TaskFile("x.jsonl", "x", path.parent), request_for(tmp_path, per="k"))


def test_embeddings_must_be_those_that_were_scored(parameters: Filter, annotated: Path) -> None:
    params = parameters()
    file = annotated_files(params)[1]
    embeddings = annotated / "out" / "embeddings" / "y.h5"
    kept = embeddings.read_bytes()
    embeddings.write_bytes((annotated / "out" / "embeddings" / "a" / "x.h5").read_bytes())
    with pytest.raises(AnnotationError, match=r"y.jsonl was made from another version of .*y.h5; annotate it again"):
        make_survey(file, SurveyRequest.of(params))
    embeddings.unlink()
    with pytest.raises(AnnotationError, match=r"there is no .*y.h5, the embeddings that were scored; correct params"):
        make_survey(file, SurveyRequest.of(params))
    embeddings.write_bytes(kept)
    lines = file.path.read_bytes().splitlines(keepends=True)
    file.path.write_bytes(b"".join(lines[::-1]))
    with pytest.raises(
        AnnotationError, match=r"y.jsonl was changed since it was annotated, so its lines may not be in"
    ):
        make_survey(file, SurveyRequest.of(params))
    # A file of another tool does not name its embeddings, but has a line for each.
    (annotated / "out" / "annotated_data" / ".provenance" / "y.jsonl.json").unlink()
    with pytest.raises(AnnotationError, match=r'y.jsonl:1: the document is "y.jsonl-19", but the same row of '):
        make_survey(file, SurveyRequest.of(params))
    file.path.write_text('{"score_good": 1}\n')
    with pytest.raises(AnnotationError, match=r"y.jsonl has 1 lines, and .*y.h5 20 rows; annotate again"):
        make_survey(file, SurveyRequest.of(params))


def test_ids_and_groups_of_other_tools_may_be_numbers(
    parameters: Filter, annotated: Path, write_lines: WriteLines
) -> None:
    with h5py.File(annotated / "out/embeddings/z.h5", "w") as other:
        other["train/embeddings"] = np.ones((3, TINY_DIM), np.float32)
        other["train/document_id"] = np.array([7, 8, 2**63 - 1], np.int64)
        other["train/topic"] = np.array([4, 4, 5], np.int8)
    ids = [7, "8", 2**63 - 1]
    write_lines("out/annotated_data/z.jsonl", [{"document_id": name, "score_good": i} for i, name in enumerate(ids)])
    params = parameters(keep={"scores": {"good": {}}, "per": "topic"})
    file = annotated_files(params)[2]
    make_survey(file, SurveyRequest.of(params))
    survey = load_survey(file, SurveyRequest.of(params))
    assert [survey.groups[code] for code in survey.group] == ["4", "4", "5"]
    write_lines("out/annotated_data/z.jsonl", [{"document_id": name, "score_good": 1} for name in (7, 8, 9)])
    with pytest.raises(AnnotationError, match=r'z.jsonl:3: the document is "9", but the same row of .*z.h5 is "9223'):
        make_survey(file, SurveyRequest.of(params))


def test_filtered_files_are_not_joined_to_embeddings(parameters: Filter) -> None:
    params = parameters()
    (_, file) = annotated_files(params)
    made = params.annotated_directory / ".provenance" / "y.jsonl.json"
    made.write_text(json.dumps({"output": json.loads(made.read_text())["output"]}))
    with pytest.raises(
        AnnotationError, match=r"y.jsonl was not written by an annotation, so its lines are not the rows"
    ):
        make_survey(file, SurveyRequest.of(params))
