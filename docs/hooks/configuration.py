"""The tables of the fields of a job, generated from the models that read job files, so that both always agree.

A hook of MkDocs: replaces `<!-- fields of CLASS -->` by a table.
"""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mlfilter_core.config import annotation, clustering, deduplication, embedding, execution, filtering, training
from mlfilter_core.config.execution import Job
from mlfilter_core.config.written import Written

PLACEHOLDER = re.compile(r"<!-- fields of (\w+) -->")
NAMES: Mapping[Any, str] = {
    **{str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"},
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the tables into a page."""
    return PLACEHOLDER.sub(lambda found: table_of(models()[found[1]]), markdown)


def models() -> dict[str, type[BaseModel]]:
    """Returns every class whose fields people write, by its name."""
    modules = (embedding, annotation, training, clustering, deduplication, filtering, execution)
    found = {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Written) and value is not Written
    }
    return {name: model for name, model in found.items() if model is Job or not issubclass(model, Job)}


def table_of(model: type[BaseModel]) -> str:
    """Returns the fields of a model as a Markdown table."""
    rows = ["| Field | Type | Default | Meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        cells = (f"`{name}`", _kind(field.annotation), _default(field), field.description or "")
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|').replace('<', '&lt;') for cell in cells)} |")
    return "\n".join(rows)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return ""
    value = list(value) if isinstance(value, tuple) else value
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix('...' + chr(10)).strip()}`"


def _kind(annotation: Any) -> str:
    """Returns a type as text, as a reader of YAML knows it."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(parts[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in parts)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_kind(part) for part in parts if part is not NoneType))
    if origin is tuple:
        return f"list of {_plural(_kind(parts[0]))}" if Ellipsis in parts else f"list of {len(parts)} numbers"
    if origin is dict:
        return f"mapping to {_plural(_kind(parts[1]))}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"fields of `{annotation.__name__}`"
    return NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _plural(kind: str) -> str:
    return f"{kind}s" if kind in ("path", "number", "whole number", "text") else kind
