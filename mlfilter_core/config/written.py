"""What people write, in a YAML job file or a form: nothing unknown in it, and nothing changes after."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from mlfilter_core.errors import in_one_line


def _with_titles_in_order(schema: dict[str, Any]) -> None:
    """Completes what forms show: pydantic gives a section no title, and PostgreSQL forgets the order of fields.

    Those that must be filled in come first.
    """
    required = schema.get("required", ())
    fields = sorted(schema.get("properties", {}).items(), key=lambda field: field[0] not in required)
    for position, (name, field) in enumerate(fields):
        field.setdefault("title", name.replace("_", " ").title())
        field["position"] = position


class Written(BaseModel):
    """What people write: unknown fields are refused, and nothing changes after."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), json_schema_extra=_with_titles_in_order
    )

    @field_validator("*")
    @classmethod
    def _usable_strings(cls, value: Any) -> Any:
        if any("\0" in str(part) for part in (value if isinstance(value, tuple) else (value,))):
            raise ValueError("holds a NUL character, which no file and no dataset can have in its name")
        try:
            return value.expanduser() if isinstance(value, Path) else value
        except RuntimeError as error:  # ~nobody/x
            raise ValueError(f"{in_one_line(error)} Write the path in full") from error
