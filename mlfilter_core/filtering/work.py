"""A filter job: a survey of every annotated file, then the kept documents of every file."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlfilter_core.config.filtering import FilterJob, FilterParameters
from mlfilter_core.corpus.source_files import JSONL_SUFFIXES
from mlfilter_core.files.part_files import n_parts_before
from mlfilter_core.files.publishing import check_apart, unless_overwritten
from mlfilter_core.files.task_files import WHOLE, TaskFile, TaskFiles, find_files, shard
from mlfilter_core.filtering.filter_file import FilterReport, filter_file, finished_filter
from mlfilter_core.filtering.filter_parts import MIN_PART_ROWS, filter_in_parts, filter_part, part_outputs, parts_of
from mlfilter_core.filtering.filter_request import OUTPUT_SUFFIXES, FilterRequest
from mlfilter_core.filtering.loading import loaded_ahead
from mlfilter_core.filtering.make_survey import make_survey
from mlfilter_core.filtering.rank_search import Surveys
from mlfilter_core.filtering.stored_thresholds import stored_thresholds
from mlfilter_core.filtering.survey import SUFFIX, SurveyReport, SurveyRequest, finished_survey, load_survey
from mlfilter_core.filtering.thresholds import find_thresholds
from mlfilter_core.work.output_folders import without_input
from mlfilter_core.work.workload import Work, Workload

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SurveyWork(Work[SurveyReport]):
    """The first step of a filter job: the survey of a file.

    Attributes:
        request: Request of the surveys.
    """

    request: SurveyRequest

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        return (self.request.output(file),)

    def finished(self, file: TaskFile, read_content: bool) -> SurveyReport | None:
        return finished_survey(file, self.request)

    def make(self, file: TaskFile) -> SurveyReport:
        return make_survey(file, self.request)


@dataclass(frozen=True)
class FilterWork(Work[FilterReport]):
    """The second step of a filter job: the kept documents of a file.

    Attributes:
        params: Parameters of the job.
        request: Request of the filter run.
    """

    REPORT = FilterReport

    params: FilterParameters
    request: FilterRequest

    def made_by(self) -> dict[str, Any]:
        groups = {group for each in self.request.thresholds.of_scores for group in each.ranks}
        return {
            **self.request.provenance(sorted(groups)),
            "criteria": self.request.criteria(),
            "notes": self.request.thresholds.notes,
        }

    def evidence(self, file: TaskFile) -> Sequence[Path]:
        return *super().evidence(file), *self.request.others(file)

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        if file.part != WHOLE:
            return part_outputs(file, self.request)
        return *self.request.outputs(file), self.request.provenance_file(file)

    @property
    def divides_all(self) -> bool:
        return self.params.split != "auto"

    def divide(self, file: TaskFile, n_parts: int) -> Sequence[TaskFile]:
        if self.params.split != "auto":
            return parts_of(file, self.request, int(self.params.split))
        # Where annotated lines are written as they are, to read what precedes a part takes as long as to filter it.
        n_parts = n_parts if self.request.survey.embeddings is not None else 1
        return parts_of(file, self.request, n_parts, MIN_PART_ROWS)

    def finished(self, file: TaskFile, read_content: bool) -> FilterReport | None:
        return unless_overwritten(lambda: finished_filter(file, self.request, read_content), self.params.overwrite)

    def make(self, file: TaskFile) -> FilterReport:
        if file.part != WHOLE:
            return filter_part(file, self.request)
        is_divided = n_parts_before(self.request.outputs(file)[0])
        return (filter_in_parts if is_divided else filter_file)(file, self.request)


def filter_course(job: FilterJob) -> Iterator[Workload[Any]]:
    """Yields the steps of a filter job; the second one needs the surveys of the first.

    Raises:
        ConfigError: As for `survey_workload` and `filter_workload`.
    """
    yield survey_workload(job)
    yield filter_workload(job)


def survey_workload(job: FilterJob) -> Workload[SurveyReport]:
    """Returns the first step of a filter job.

    Raises:
        ConfigError: The folder of annotated files is missing, is or contains an output folder, or two of its files
            would share an output name.
    """
    request = SurveyRequest.of(job.params)
    return Workload("survey", _files(job.params), SurveyWork(request), request.folder, is_step=True)


def filter_workload(job: FilterJob) -> Workload[FilterReport]:
    """Returns the second step of a filter job. Every file, of all shards, must have a survey.

    Raises:
        ConfigError: As for `find_thresholds`.
        SurveyMissingError: A file has no survey.
    """
    params = job.params
    surveys = SurveyRequest.of(params)
    all_files = _files(params)
    _warn_of_files_without_annotations(params)
    paths = (
        path
        for file in all_files
        for path in (f"{surveys.folder}/{file.stem}{SUFFIX}", f"{file.folder}/{file.relative}")
    )
    needs_tokens = any(bound.best_tokens is not None for bound in params.keep.scores.values())
    thresholds = stored_thresholds(
        surveys.folder,
        params.keep,
        paths,
        lambda: find_thresholds(params.keep, _loaded(all_files, surveys, needs_tokens)),
    )
    files = shard(all_files, job.local.ranks, job.local.tasks)
    return Workload("filter", files, FilterWork(params, FilterRequest.of(params, thresholds)), params.filtered_dir)


def surveys_of(params: FilterParameters) -> Surveys:
    """Returns a function that loads the survey of every file.

    Raises:
        ConfigError: As for `survey_workload`.
    """
    return _loaded(_files(params), SurveyRequest.of(params))


def _loaded(files: Sequence[TaskFile], request: SurveyRequest, with_tokens: bool = True) -> Surveys:
    return lambda: loaded_ahead(files, lambda file: load_survey(file, request, with_tokens))


def _files(params: FilterParameters) -> TaskFiles:
    for folder in (params.filtered_dir, params.dropped_dir):
        check_apart("params.annotated_directory", params.annotated_directory, folder)
    return find_files(params.annotated_directory, params.glob_pattern, JSONL_SUFFIXES, written_by="annotate")


def _warn_of_files_without_annotations(params: FilterParameters) -> None:
    """Warns of filtered files whose annotated files are gone: readers of the folder still read them."""
    for path in without_input(params.filtered_dir, OUTPUT_SUFFIXES, params.annotated_directory, JSONL_SUFFIXES):
        _log.warning("%s: its annotated file is gone; remove it if its documents are not wanted", path)
