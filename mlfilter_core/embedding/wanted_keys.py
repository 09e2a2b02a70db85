"""Checks that documents have the keys of an embedding job.

Knows nothing about files.
"""

import difflib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mlfilter_core.config.embedding import EmbeddingPipelineParameters
from mlfilter_core.corpus.documents import DEFAULT_LABEL_KEYS, MISSING_LABEL, has_value
from mlfilter_core.errors import ConfigError

N_SHOWN_KEYS = 12
LABEL_FIELD = "params.label_key"
JSON_TYPES: Mapping[type, str] = {
    **{str: "string", bool: "boolean", int: "number", float: "number"},
    **{list: "array", dict: "object", type(None): "null"},
}
LABEL_ADVICE = (
    "set params.glob_pattern to the files with labels; or set params.save_labels: false, and give the labels to the "
    "training job as labels_path"
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WantedKey:
    """A key that every document must have.

    Attributes:
        field: Job field that names the key.
        keys: The key, or alternatives; a document must have one of them.
    """

    field: str
    keys: tuple[str, ...]

    def is_in(self, record: Mapping[str, Any]) -> bool:
        return any(has_value(record, key) for key in self.keys)


def wanted_keys(params: EmbeddingPipelineParameters) -> list[WantedKey]:
    """Returns the keys that a document must have to be embedded."""
    schema = params.schema_of_documents()
    wanted = [
        WantedKey("params.text_field" if params.text_field else "params.keys_to_index", (key,))
        for key in schema.text_keys
    ]
    wanted += [WantedKey("params.keys_to_index", (key,)) for key in schema.index_keys if key not in schema.text_keys]
    if schema.id_key is not None:
        wanted.append(WantedKey("params.id_key", (schema.id_key,)))
    if schema.label_keys is None:
        wanted.append(WantedKey(LABEL_FIELD, DEFAULT_LABEL_KEYS))
    else:
        labels = (schema.label_keys,) if isinstance(schema.label_keys, str) else schema.label_keys
        wanted += [WantedKey(LABEL_FIELD, (key,)) for key in labels]
    return wanted


def describe_absent(wanted: Sequence[WantedKey], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the keys that no record has, as text; none where there are no records."""
    types = types_by_key(records)
    absent = [key for key in wanted if not any(key.is_in(record) for record in records)] if records else []
    there = ", ".join(f"{key} ({' or '.join(kinds)})" for key, kinds in islice(types.items(), N_SHOWN_KEYS))
    more = ", ..." if len(types) > N_SHOWN_KEYS else ""
    return [
        f"{key.field}: none of {len(records)} sampled documents has {' or '.join(map(repr, key.keys))}"
        f"{_nearest(key.keys[0], list(types))}; they have: {there or 'no keys'}{more}"
        + ("; without labels, set params.save_labels: false" if key.field == LABEL_FIELD else "")
        for key in absent
    ]


def advice_on_rejects(by_reason: Counter[str]) -> str:
    """Returns what helps a file of which too many lines are rejected, by their most frequent reason."""
    return LABEL_ADVICE if by_reason.most_common(1)[0][0] == MISSING_LABEL else "check the keys, or raise it"


def types_by_key(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Returns the number of values of each JSON type by key; keys inside an object as `scores.education`."""
    types: dict[str, dict[str, int]] = {}

    def add(prefix: str, record: Mapping[str, Any]) -> None:
        for key, value in record.items():
            kind = JSON_TYPES[type(value)]
            counts = types.setdefault(f"{prefix}{key}", {})
            counts[kind] = counts.get(kind, 0) + 1
            if kind == "object" and not prefix:
                add(f"{key}.", value)

    for record in records:
        add("", record)
    return types


def check_wanted_keys(params: EmbeddingPipelineParameters, records: Sequence[Mapping[str, Any]]) -> None:
    """Checks that each key that a job needs is in one of the first documents of a run.

    Raises:
        ConfigError: A key is in none of them; names the existing keys.
    """
    absent = describe_absent(wanted_keys(params), records)
    if not absent:
        return
    if params.max_rejected_fraction == 1:  # the job allows every line to be rejected
        _log.warning("%s", "; ".join(absent))
        return
    raise ConfigError("\n  ".join(["no document could be embedded; correct the job's keys", *absent]))


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, 1, 0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
