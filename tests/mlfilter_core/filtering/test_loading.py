import threading
from pathlib import Path

import pytest

from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering import loading
from mlfilter_core.filtering.loading import loaded_ahead
from mlfilter_core.filtering.survey import Survey, SurveyMissingError
from tests.mlfilter_core.filtering.conftest import survey_of

FILES = [TaskFile(f"{i}.jsonl", str(i), Path("folder")) for i in range(200)]


@pytest.mark.parametrize("batch_documents", [1, 7, 1000])
def test_every_file_is_loaded_once(batch_documents: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BATCH_DOCUMENTS", batch_documents)
    found = loaded_ahead(FILES, lambda file: survey_of([1.0, 2.0], stem=file.stem))
    assert sorted(survey.stem for survey in found) == sorted(file.stem for file in FILES)
    assert list(loaded_ahead([], lambda file: survey_of([]))) == []


def test_few_surveys_are_loaded_before_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BATCH_DOCUMENTS", 1)
    begun = threading.Semaphore(0)
    loaded: list[str] = []

    def load(file: TaskFile) -> Survey:
        loaded.append(file.stem)
        begun.release()
        return survey_of([1.0], stem=file.stem)

    surveys = loaded_ahead(FILES, load)
    next(surveys)
    for _ in range(loading.N_THREADS + 1):
        assert begun.acquire(timeout=30)
    surveys.close()
    assert len(loaded) == loading.N_THREADS + 1


def test_a_survey_that_is_missing_ends_the_loading() -> None:
    def load(file: TaskFile) -> Survey:
        if file.stem == "150":
            raise SurveyMissingError(f"{file.path} has not been surveyed")
        return survey_of([1.0], stem=file.stem)

    with pytest.raises(SurveyMissingError, match=r"folder/150.jsonl has not been surveyed"):
        list(loaded_ahead(FILES, load))
