import os
from dataclasses import replace
from pathlib import Path

import pytest

from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.make_survey import make_survey
from mlfilter_core.filtering.survey import (
    NO_GROUP,
    UNKNOWN,
    SurveyMissingError,
    SurveyRequest,
    finished_survey,
    load_survey,
)
from tests.conftest import WriteLines
from tests.mlfilter_core.filtering.conftest import Filter, annotated_files, request_for


def test_a_survey_is_made_once_for_each_version_of_a_file(write_lines: WriteLines, tmp_path: Path) -> None:
    path = write_lines("x.jsonl", [{"q": 1}])
    file, request = TaskFile("x.jsonl", "x", path.parent), request_for(tmp_path)
    assert finished_survey(file, request) is None
    with pytest.raises(SurveyMissingError, match=r"x.jsonl has not been surveyed"):
        load_survey(file, request)
    made = make_survey(file, request)
    found = finished_survey(file, request)
    assert found is not None
    assert (found.status, found.documents, found.output) == ("skipped", 1, made.output)
    for other in (request_for(tmp_path, ("r",)), request_for(tmp_path, per="k")):
        assert finished_survey(file, other) is None
        with pytest.raises(SurveyMissingError, match=r"x.jsonl was surveyed for other scores, another params.keep.per"):
            load_survey(file, other)
    path.write_text('{"q": 2}\n')
    assert finished_survey(file, request) is None
    with pytest.raises(SurveyMissingError, match=r"x.jsonl was changed since it was surveyed"):
        load_survey(file, request)


@pytest.mark.parametrize("kept_bytes", [0, 100, -100, -1])
def test_a_broken_survey_is_replaced(kept_bytes: int, write_lines: WriteLines, tmp_path: Path) -> None:
    path = write_lines("x.jsonl", [{"q": 1}])
    file, request = TaskFile("x.jsonl", "x", path.parent), request_for(tmp_path)
    survey = Path(make_survey(file, request).output)
    survey.write_bytes(survey.read_bytes()[:kept_bytes])
    assert finished_survey(file, request) is None
    make_survey(file, request)
    assert finished_survey(file, request) is not None


def test_other_embeddings_are_another_survey(parameters: Filter) -> None:
    params = parameters()
    file = annotated_files(params)[1]
    request = SurveyRequest.of(params)
    make_survey(file, request)
    assert finished_survey(file, request) is not None
    assert params.embeddings_directory is not None
    os.utime(params.embeddings_directory / "y.h5")
    assert finished_survey(file, request) is None
    make_survey(file, request)
    assert finished_survey(file, replace(request, embeddings=None)) is None
    assert finished_survey(file, replace(request, group="other")) is None


def test_a_damaged_byte_is_noticed_or_changes_nothing(write_lines: WriteLines, tmp_path: Path) -> None:
    path = write_lines("x.jsonl", [{"q": 1, "n_tokens": 7, "k": "a"}, {"q": 2.5, "n_tokens": 9, "k": "b"}])
    file, request = TaskFile("x.jsonl", "x", path.parent), request_for(tmp_path, per="k")
    survey = Path(make_survey(file, request).output)
    content = survey.read_bytes()
    n_noticed = 0
    for place in range(len(content)):
        survey.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            loaded = load_survey(file, request)
        except SurveyMissingError:
            n_noticed += 1
            assert finished_survey(file, request) is None, "the next run makes it again"
            continue
        assert (loaded.scores.tolist(), loaded.tokens.tolist()) == ([[1], [2.5]], [7, 9]), place
        assert ([loaded.groups[code] for code in loaded.group], loaded.stem) == (["a", "b"], "x"), place
    assert n_noticed > len(content) / 2


def test_columns_that_are_not_needed_are_not_loaded(write_lines: WriteLines, tmp_path: Path) -> None:
    path = write_lines("x.jsonl", [{"q": 1, "n_tokens": 7}, {"q": 2, "n_tokens": 2**33}])
    file, request = TaskFile("x.jsonl", "x", path.parent), request_for(tmp_path)
    make_survey(file, request)
    assert load_survey(file, request).tokens.tolist() == [7, 2**33]
    survey = load_survey(file, request, with_tokens=False)
    assert (survey.tokens.tolist(), survey.group.tolist(), survey.groups) == ([UNKNOWN] * 2, [0, 0], (NO_GROUP,))
