"""A large annotated file in parts: tasks filter some of its rows into hidden files, and another joins these into one.

Compressed parts are joined as they are: readers of gzip and Zstandard take several streams as one.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from mlfilter_core.files.identity import is_same_file
from mlfilter_core.files.new_file import HashedFile, append_file
from mlfilter_core.files.part_files import MOST_PARTS, SOURCE_VERSION, make_and_join, n_parts_before, part_file
from mlfilter_core.files.publishing import publish, publish_json
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.filter_file import (
    FilterReport,
    filter_file,
    provenance_of_filtered,
    remove_stale,
    report_of,
    write_kept,
)
from mlfilter_core.filtering.filter_request import FilterRequest
from mlfilter_core.filtering.kept_documents import source_version
from mlfilter_core.filtering.survey import Survey, finished_survey, load_survey
from mlfilter_core.work.same_request import differing_fields

# Arbitrary: seconds of work.
MIN_PART_ROWS = 100_000

_log = logging.getLogger(__name__)


def parts_of(file: TaskFile, request: FilterRequest, n_wanted: int, min_rows: int = 1) -> list[TaskFile]:
    """Returns the parts of a file, as an earlier run divided it or in the wanted number; none for a single part.

    Parquet is written as a whole: the types of its columns are known after the last document.

    Args:
        file: The annotated file.
        request: Request of this run.
        n_wanted: Number of parts.
        min_rows: Rows that a part has at least.
    """
    n_parts = n_parts_before(request.outputs(file)[0])
    if not n_parts and n_wanted > 1 and request.output_format == "jsonl":
        survey = finished_survey(file, request.survey)  # without one, its task fails
        n_parts = 0 if survey is None else min(n_wanted, MOST_PARTS, survey.documents // min_rows)
    return file.divided(n_parts)


def part_outputs(file: TaskFile, request: FilterRequest) -> list[Path]:
    """Returns the files of a part: its kept documents, the dropped ones where asked, and their provenance."""
    output = request.outputs(file)[0]
    suffixes = (request.suffix, f".dropped{request.suffix}") if request.write_dropped else (request.suffix,)
    return [part_file(output, file.part, suffix) for suffix in (*suffixes, ".json")]


def filter_part(file: TaskFile, request: FilterRequest) -> FilterReport:
    """Filters a part of a file, unless that was done by the same request from the same file.

    Raises:
        AnnotationError, SourceError, SurveyMissingError, OSError: As `filter_file`.
    """
    started = time.monotonic()
    survey = load_survey(file, request.survey)
    report = report_of(file, request, survey)
    if not _make_part(file, request, survey):
        return replace(report, status="skipped")
    return replace(report, seconds=time.monotonic() - started)


def filter_in_parts(file: TaskFile, request: FilterRequest) -> FilterReport:
    """Joins the parts of a file; filters those that are missing. Each output appears complete or not at all.

    Args:
        file: The whole file, which was divided before.
        request: Request of this run.

    Raises:
        AnnotationError, SourceError, SurveyMissingError, OSError: As `filter_file`.
    """
    parts = parts_of(file, request, 1)
    survey = load_survey(file, request.survey)
    report = make_and_join(
        request.outputs(file)[0],
        parts,
        lambda part: part_outputs(part, request),
        lambda part: _make_part(part, request, survey),
        lambda: _join(file, parts, request, survey),
    )
    if report is None:
        _log.warning(
            "%s: its parts do not make the whole, or are of several versions of the source; they are discarded",
            file.relative,
        )
        return filter_file(file, request)
    remove_stale(file, request)
    return report


def _make_part(file: TaskFile, request: FilterRequest, survey: Survey) -> bool:
    """Filters a part of a file, unless that was done; returns whether it was not."""
    if _finished_part(file, request, survey) is not None:
        return False
    *outputs, provenance = part_outputs(file, request)
    is_read = request.write_dropped or request.thresholds.kept(survey).any()
    version = source_version(file, request) if is_read else None
    with ExitStack() as stack:
        targets = [stack.enter_context(publish(path)) for path in outputs]
        identities = write_kept(targets, file, request, survey)
        made = provenance_of_filtered(request, survey, report_of(file, request, survey), identities)
        publish_json(provenance, {**made, SOURCE_VERSION: version})
    return True


def _join(file: TaskFile, parts: Sequence[TaskFile], request: FilterRequest, survey: Survey) -> FilterReport | None:
    """Writes the outputs from those of the parts; returns None where these do not make the whole."""
    started = time.monotonic()
    outputs = request.outputs(file)
    made = [_finished_part(part, request, survey) for part in parts]
    versions = [each and each[SOURCE_VERSION] for each in made]
    # Only the last part is compared with the digest of the source.
    if None in made or any(version != versions[-1] for version in versions):
        return None
    report = report_of(file, request, survey)
    with ExitStack() as stack:
        identities = []
        for i, path in enumerate(outputs):
            with HashedFile(stack.enter_context(publish(path))) as on_disk:
                for part in parts:
                    append_file(on_disk, part_outputs(part, request)[i])
            identities.append(on_disk.identity())
        publish_json(request.provenance_file(file), provenance_of_filtered(request, survey, report, identities))
    _log.info("%s: joined %d parts, %d of %d documents kept", file.relative, len(parts), report.kept, report.documents)
    return replace(report, seconds=time.monotonic() - started)


def _finished_part(file: TaskFile, request: FilterRequest, survey: Survey) -> dict[str, Any] | None:
    """Returns the provenance of a part that is finished by the same request, and was not changed."""
    *outputs, provenance = part_outputs(file, request)
    try:
        made: dict[str, Any] = orjson.loads(provenance.read_bytes())
        is_ours = not differing_fields(made["request"], request.provenance(survey.groups))
        is_ours = is_ours and (made["groups"], made["annotated"]) == (list(survey.groups), survey.annotated)
        written = zip(outputs, (made["output"], made["dropped"]), strict=False)
        is_ours = is_ours and all(is_same_file(path, identity, read_content=True) for path, identity in written)
        return made if is_ours else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
