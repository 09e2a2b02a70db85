import os
from dataclasses import replace
from pathlib import Path

import pytest

from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.make_survey import make_survey
from mlfilter_core.filtering.survey import (
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
