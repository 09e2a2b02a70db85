"""Thresholds stored beside the surveys that they were found in.

A restarted run, and a rerun of a finished one, need not read the surveys of a large corpus again. The file also shows
the thresholds of a run to people.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter

from mlfilter_core.config.filtering import Selection
from mlfilter_core.files.publishing import publish_json
from mlfilter_core.filtering.thresholds import ScoreThresholds, Thresholds

THRESHOLDS_NAME = "cuts.json"
_SCORES = TypeAdapter(tuple[ScoreThresholds, ...])


def stored_thresholds(
    folder: Path, selection: Selection, files: Iterable[str], find: Callable[[], Thresholds]
) -> Thresholds:
    """Returns the stored thresholds of a selection; finds and stores them where the selection or a file changed.

    Args:
        folder: Folder of the stored thresholds, those of one selection at a time.
        selection: Documents to keep.
        files: Paths of the surveys and the annotated files. The corpus has changed if the list, a size or a
            modification time has.
        find: Finds the thresholds.

    Raises:
        FileError: `find` misses a survey.
        OSError: Reading or writing failed.
    """
    path = folder / THRESHOLDS_NAME
    try:
        made_from = {"selection": selection.model_dump(mode="json"), "files": _state(files)}
    except FileNotFoundError:
        return find()
    if (stored := _load(path, made_from)) is not None:
        return stored
    thresholds = find()  # the state before the search, so that the next run notices a survey replaced meanwhile
    facts = {
        "limits": [each.describe() for each in thresholds.of_scores],
        "scores": _SCORES.dump_python(thresholds.of_scores),
        "at_least": thresholds.n_needed,
        "of": made_from,
    }
    publish_json(path, facts)
    return thresholds


def _load(path: Path, made_from: dict[str, Any]) -> Thresholds | None:
    try:
        facts = orjson.loads(path.read_bytes())
        if facts["of"] != made_from:
            return None
        return Thresholds(_SCORES.validate_python(facts["scores"]), facts["at_least"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # missing, or of another version
        return None


def _state(files: Iterable[str]) -> str:
    """Returns a digest of the names, sizes and modification times."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        status = os.stat(path)  # noqa: PTH116 - of two million files; a Path takes three times as long
        digest.update(orjson.dumps([path, status.st_size, status.st_mtime_ns]))
    return digest.hexdigest()
