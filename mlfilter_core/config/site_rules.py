"""The fields that a site forbids to the jobs on its machines, such as those that run code of the job's author."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from mlfilter_core.config.written import Written
from mlfilter_core.errors import ConfigError

# Names of the fields, set in the environment of the process that runs jobs: `trust_remote_code env_command`.
REFUSED_FIELDS = "MLFILTER_REFUSED_FIELDS"


def check_site_rules(job: Written) -> None:
    """Checks that a job leaves the fields at their defaults that the site forbids.

    Raises:
        ConfigError: It sets one of them, or the site forbids a field that does not exist.
    """
    refused = [name for name in re.split(r"[\s,]+", os.environ.get(REFUSED_FIELDS, "")) if name]
    if not refused:
        return
    known = {name for kind in _kinds(Written) for name in kind.model_fields}
    if unknown := [name for name in refused if name not in known]:
        close = difflib.get_close_matches(unknown[0], known, 1, 0.6)
        near = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"the variable {REFUSED_FIELDS} names {unknown[0]}, which is no field of a job{near}")
    if found := [name for name in _fields_set(job) if name.rpartition(".")[2] in refused]:
        raise ConfigError(
            f"{', '.join(found)}: refused on this site, by the variable {REFUSED_FIELDS} of the process that runs "
            "jobs; leave it out of the job, or ask who administers the site"
        )


def _kinds(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Gives all classes of what people write that are imported; those of all kinds of jobs, in a command or flow."""
    yield kind
    for special in kind.__subclasses__():
        yield from _kinds(special)


def _fields_set(section: BaseModel, prefix: str = "") -> Iterator[str]:
    """Gives the dotted names of the fields that differ from their defaults, those of sections within included."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if value != field.get_default(call_default_factory=True):
            yield f"{prefix}{name}"
            yield from _fields_within(value, f"{prefix}{name}")


def _fields_within(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from _fields_set(value, f"{name}.")
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _fields_within(entry, f"{name}.{key}")
    elif isinstance(value, tuple | list):
        for i, entry in enumerate(value):
            yield from _fields_within(entry, f"{name}[{i}]")
