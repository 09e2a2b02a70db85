"""Cuts that were found before, kept beside the surveys that they were found in.

So the tasks of a run that goes on after a kill, and a rerun of a finished one, need not read the surveys of a large
corpus again. Whoever wants to know the limits of a run finds them there, too.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson

from mlfilter_core.config.filtering import Bound, Selection
from mlfilter_core.files.publishing import publish_json
from mlfilter_core.filtering.cuts import Cut, Cuts, ScoreCuts

CUTS_NAME = "cuts.json"


def cuts_found_once(folder: Path, selection: Selection, files: Iterable[Path], find: Callable[[], Cuts]) -> Cuts:
    """Returns what a selection means for a corpus: as it was found before, if neither has changed since.

    Args:
        folder: Where cuts are kept, those of one selection at a time.
        selection: Which documents are kept.
        files: The surveys and what they are of; another size or time of change of one, or another list, is another
            corpus.
        find: Finds the cuts.

    Raises:
        FileError: A survey is missing or of another version of its file, as `find` says.
        OSError: Reading or writing failed.
    """
    path = folder / CUTS_NAME
    try:
        of = {"selection": selection.model_dump(mode="json"), "files": _state(files)}
    except FileNotFoundError:
        return find()
    if (stored := _load(path, of)) is not None:
        return stored
    cuts = find()  # the state is from before: a survey that is made anew meanwhile is noticed the next time
    facts = {
        "limits": [each.describe() for each in cuts.of_scores],
        "scores": [
            {
                "score": each.score,
                "bound": each.bound.model_dump(),
                "ranks": {group: cut.rank for group, cut in each.by_group.items()},
                "documents": each.documents,
            }
            for each in cuts.of_scores
        ],
        "at_least": cuts.n_needed,
        "of": of,
    }
    publish_json(path, facts)
    return cuts


def _load(path: Path, of: dict[str, Any]) -> Cuts | None:
    try:
        facts = orjson.loads(path.read_bytes())
        if facts["of"] != of:
            return None
        found = [
            ScoreCuts(
                each["score"],
                Bound(**each["bound"]),
                {group: Cut(rank) for group, rank in each["ranks"].items()},
                each["documents"],
            )
            for each in facts["scores"]
        ]
        return Cuts(tuple(found), facts["at_least"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # none, or of another version
        return None


def _state(files: Iterable[Path]) -> str:
    """Returns a digest of the names, sizes and times of change."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        status = path.stat()
        digest.update(orjson.dumps([str(path), status.st_size, status.st_mtime_ns]))
    return digest.hexdigest()
