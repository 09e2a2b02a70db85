"""The base of everything that people write, in a YAML job file or a form."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from mlfilter_core.errors import in_one_line
from mlfilter_core.files.urls import refuse_url


def _with_titles_in_order(schema: dict[str, Any]) -> None:
    """Adds what forms need: titles, which pydantic omits for sections, and positions, as PostgreSQL loses the order.

    Required fields come first.
    """
    required = schema.get("required", ())
    fields = sorted(schema.get("properties", {}).items(), key=lambda field: field[0] not in required)
    for position, (name, field) in enumerate(fields):
        field.setdefault("title", name.replace("_", " ").title())
        field["position"] = position


class Written(BaseModel):
    """A frozen model that refuses unknown fields."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), json_schema_extra=_with_titles_in_order
    )

    @field_validator("*")
    @classmethod
    def _usable_strings(cls, value: Any) -> Any:
        if any("\0" in str(part) for part in (value if isinstance(value, tuple) else (value,))):
            raise ValueError("contains a NUL character, which names of files and datasets cannot contain")
        if not isinstance(value, Path):
            return value
        refuse_url(value)
        try:
            return value.expanduser()
        except RuntimeError as error:  # ~nobody/x
            raise ValueError(f"{in_one_line(error)} Write the path in full") from error
