"""Sums over the files of duplicates of a folder, and the largest groups of their summary."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from mlfilter_core.config.deduplication import SUMMARY_FILE
from mlfilter_core.run_report.facts import DeduplicatedFacts
from mlfilter_core.verification.stated_facts import StatedDuplicates
from mlfilter_core.wording import shortened

MAX_GROUPS = 50
N_CHARACTERS = 200  # of a text, as of those of clusters


class DuplicateTotals:
    """Adds up files of duplicates, one after another.

    Attributes:
        n_files: Number of files.
    """

    def __init__(self) -> None:
        self.n_files = 0
        self._n_documents = 0
        self._sums: Counter[str] = Counter()
        self._found: Counter[str] = Counter()

    def add(self, stated: StatedDuplicates, n_documents: int) -> None:
        """Adds a file."""
        self.n_files += 1
        self._n_documents += n_documents
        self._sums.update(kept=stated.kept, tokens=stated.tokens, kept_tokens=stated.kept_tokens)
        self._found[stated.groups_sha256] += 1

    def facts(self, output_dir: Path) -> DeduplicatedFacts | None:
        """Returns the sums, with the groups of the summary in a folder; None where no file was added."""
        if not self.n_files:
            return None
        return DeduplicatedFacts(
            files=self.n_files,
            documents=self._n_documents,
            kept=self._sums["kept"],
            tokens=self._sums["tokens"],
            kept_tokens=self._sums["kept_tokens"],
            found=dict(self._found.most_common()),
            **_summarized(output_dir / SUMMARY_FILE),
        )


def _summarized(path: Path) -> Mapping[str, Any]:
    """Returns the attributes of `DeduplicatedFacts` that come from the summary; none where it is missing or broken."""
    try:
        found = orjson.loads(path.read_bytes())
        recall = found["recall"]
        return {
            "summarized": int(found["documents"]),
            "threshold": found["request"]["threshold"],
            "groups": int(found["groups"]),
            "recall": recall and {name: int(recall[name]) for name in ("pairs", "found")},
            "largest": [_group(group) for group in found["largest"][:MAX_GROUPS]],
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _group(group: Mapping[str, Any]) -> Mapping[str, Any]:
    shown = [
        {
            **{name: document[name] for name in ("file", "row", "document_id")},
            "cosine": None if document["cosine"] is None else float(document["cosine"]),
            "text": shortened(document["text"], N_CHARACTERS),
        }
        for document in group["shown"]
    ]
    if len(shown) < 2:
        raise ValueError("a group has a kept document and a duplicate")
    return {"documents": int(group["documents"]), "shown": shown}
