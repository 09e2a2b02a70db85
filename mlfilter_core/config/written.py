"""The base of everything that people write, in a YAML job file or a form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from mlfilter_core.errors import in_one_line
from mlfilter_core.files.part_files import MOST_PARTS
from mlfilter_core.files.urls import check_url, refuse_url, url_of

SPLIT = (
    "Parts of each file that different workers {work}; they are joined into one output. auto: several for a file that "
    "is large beside a worker's share of the work. false: none. A number: as many, as far as {limit}. Files of URLs "
    "are not divided."
)
Split = Literal["auto", False] | Annotated[int, Field(ge=2, le=MOST_PARTS)]


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
    """A frozen model that refuses unknown fields.

    Attributes:
        URLS: Names of the paths that may be URLs, and whether the job writes there.
    """

    URLS: ClassVar[Mapping[str, bool]] = {}

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), json_schema_extra=_with_titles_in_order
    )

    @field_validator("*")
    @classmethod
    def _usable_strings(cls, value: Any, info: ValidationInfo) -> Any:
        if any("\0" in str(part) for part in (value if isinstance(value, tuple) else (value,))):
            raise ValueError("contains a NUL character, which names of files and datasets cannot contain")
        if not isinstance(value, Path):
            return value
        if (is_written := cls.URLS.get(str(info.field_name))) is None:
            refuse_url(value)
        elif (url := url_of(value)) is not None:
            check_url(url, is_written)
            return value
        try:
            return value.expanduser()
        except RuntimeError as error:  # ~nobody/x
            raise ValueError(f"{in_one_line(error)} Write the path in full") from error

    @model_validator(mode="after")
    def _divides_files_of_this_machine(self) -> Self:
        split = getattr(self, "split", False)
        urls = [name for name in self.URLS if (path := getattr(self, name)) is not None and url_of(path) is not None]
        if urls and isinstance(split, int) and split > 1:
            raise ValueError(f"split is {split}, and {urls[0]} a URL, whose files are not divided; remove split")
        return self

    @field_serializer("*", mode="wrap", when_used="json")
    def _urls_as_written(self, value: Any, serialize: SerializerFunctionWrapHandler) -> Any:
        url = url_of(value) if isinstance(value, Path) else None  # pathlib drops a slash of it
        return serialize(value) if url is None else url
