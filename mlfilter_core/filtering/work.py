"""A filter job: first a survey of every annotated file, then the documents of every file that are kept."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlfilter_core.config.filtering import FilterJob, FilterParameters
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.errors import ConfigError
from mlfilter_core.files.publishing import unless_overwritten
from mlfilter_core.files.task_files import TaskFile, find_files, shard
from mlfilter_core.filtering.cuts import Surveys, find_cuts
from mlfilter_core.filtering.filter_file import (
    OUTPUT_SUFFIXES,
    FilterReport,
    FilterRequest,
    filter_file,
    finished_filter,
)
from mlfilter_core.filtering.stored_cuts import cuts_found_once
from mlfilter_core.filtering.survey import (
    Survey,
    SurveyReport,
    SurveyRequest,
    finished_survey,
    load_survey,
    make_survey,
)
from mlfilter_core.work.workload import Work, Workload

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SurveyWork(Work[SurveyReport]):
    """What a filter job does first with each of its files.

    Attributes:
        request: What is asked of every file.
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
    """What a filter job does with each of its files once the cuts are known.

    Attributes:
        params: The job's parameters.
        request: What they ask of every file.
    """

    params: FilterParameters
    request: FilterRequest

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        return *self.request.outputs(file), self.request.provenance_file(file)

    def finished(self, file: TaskFile, read_content: bool) -> FilterReport | None:
        return unless_overwritten(lambda: finished_filter(file, self.request, read_content), self.params.overwrite)

    def make(self, file: TaskFile) -> FilterReport:
        return filter_file(file, self.request)


def survey_workload(job: FilterJob) -> Workload[SurveyReport]:
    """Returns what a filter job is to do first.

    Raises:
        ConfigError: The folder of annotated files is missing, or its files cannot be told apart.
    """
    request = SurveyRequest.of(job.params)
    return Workload("survey", _files(job.params), SurveyWork(request), request.folder, is_step=True)


def filter_workload(job: FilterJob) -> Workload[FilterReport]:
    """Returns what a filter job is to do once every file, of all shards, has a survey.

    Raises:
        ConfigError: As `find_cuts`.
        SurveyMissingError: A file has none.
    """
    params = job.params
    surveys = SurveyRequest.of(params)
    all_files = _files(params)
    _warn_of_files_without_annotations(params)
    paths = (path for file in all_files for path in (surveys.output(file), file.path))
    cuts = cuts_found_once(
        surveys.folder, params.keep, paths, lambda: find_cuts(params.keep, _loaded(all_files, surveys))
    )
    files = shard(all_files, job.local.ranks, job.local.tasks)
    return Workload("filter", files, FilterWork(params, FilterRequest.of(params, cuts)), params.filtered_dir)


def surveys_of(params: FilterParameters) -> Surveys:
    """Returns what gives the survey of every file.

    Raises:
        ConfigError: As `survey_workload`.
    """
    return _loaded(_files(params), SurveyRequest.of(params))


def _loaded(files: Sequence[TaskFile], request: SurveyRequest) -> Surveys:
    def surveys() -> Iterator[Survey]:
        return (load_survey(file, request) for file in files)

    return surveys


def _files(params: FilterParameters) -> list[TaskFile]:
    annotated = params.annotated_directory.resolve()
    for folder in (params.filtered_dir, params.dropped_dir):
        written = folder.resolve()
        if written.is_relative_to(annotated) or annotated.is_relative_to(written):
            raise ConfigError(
                f"params.annotated_directory: {params.annotated_directory} and {folder}, where documents are written, "
                "lie within each other; give another output_dir"
            )
    return find_files(params.annotated_directory, params.glob_pattern, SOURCE_SUFFIXES)


def _warn_of_files_without_annotations(params: FilterParameters) -> None:
    """Tells of filtered files whose annotated files are gone: who reads the folder reads them as well."""
    for path in params.filtered_dir.glob("**/[!.]*"):
        relative = path.relative_to(params.filtered_dir).as_posix()
        suffix = next((suffix for suffix in OUTPUT_SUFFIXES if relative.endswith(suffix)), None)
        if suffix is None:
            continue
        stem = relative.removesuffix(suffix)
        if not any((params.annotated_directory / f"{stem}{suffix}").exists() for suffix in SOURCE_SUFFIXES):
            _log.warning("%s: its annotated file is gone; remove it if its documents are not wanted any more", path)
