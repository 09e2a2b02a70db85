"""A YAML job file to a job, with all its problems in one message."""

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from mlfilter_core.config.environment import reading_no_secrets
from mlfilter_core.config.execution import Job as AnyJob
from mlfilter_core.config.site_rules import check_site_rules
from mlfilter_core.errors import ConfigError, in_one_line
from mlfilter_core.files.urls import masked
from mlfilter_core.wording import plural

# Length of a job after its ${...} are replaced. Arbitrary: some hundred times the longest job in practice.
MAX_CHARACTERS = 1_000_000
MAX_STEPS = 100  # from one ${...} to the next; the recursion limit of Python allows fewer
RAISED = re.compile(r"^\w+ raised while resolving interpolation: ")  # before the message of what a ${...} raised
WORD = re.compile(r"[^\s.:,${}\[\]]+(?![^\s:,}\]])")  # the last word of a path such as ${params.output_dir}

Job = TypeVar("Job", bound=AnyJob)


def load_job(
    config: Path | str | Job | Mapping[str, Any],
    kind: type[Job],
    overrides: Mapping[str, Any] | None = None,
) -> Job:
    """Returns a job from a YAML job file, or from the same content in another form.

    `${name}` and `${section.name}` are replaced by other values of the job, `${oc.env:NAME}` by an environment
    variable, as in OmegaConf.

    Args:
        config: Path of a job file, a job, or a mapping.
        kind: Class of the job, such as `EmbeddingJob`.
        overrides: Values that replace those of `config`, by dotted name: `{"params.batch_size": 8}`.

    Raises:
        ConfigError: A field is unknown, missing or out of range; names every such field and how to fix it. Or the job
            reads a secret from the environment, or sets a field that the site forbids.
    """
    if isinstance(config, kind) and not overrides:
        check_site_rules(config)
        return config
    return load_job_of(config, lambda content: kind, overrides)


def load_job_of(
    config: Path | str | AnyJob | Mapping[str, Any],
    kind_of: Callable[[Mapping[str, Any]], type[Job]],
    overrides: Mapping[str, Any] | None = None,
) -> Job:
    """Returns a job of the class that its content determines; arguments and errors as for `load_job`.

    Args:
        config: The path of a file, or the whole job.
        kind_of: Returns the class of a job with some content, which may be wrong in any way.
        overrides: Values that replace those of `config`.
    """
    name = str(config) if isinstance(config, str | Path) else "the job"
    try:
        written = OmegaConf.load(config) if isinstance(config, str | Path) else OmegaConf.create(_plain(config))
        if not isinstance(written, DictConfig) or not written:
            raise ConfigError(f'{name} must contain a mapping with a "params:" section')
        for field, value in (overrides or {}).items():
            OmegaConf.update(written, field, value, merge=False, force_add=True)
        _check_length(written, name)
        with reading_no_secrets():
            content = OmegaConf.to_container(written, resolve=True)
    except FileNotFoundError:
        raise ConfigError(f"the job file {name} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the job file {name} cannot be read: {error}") from error
    except InterpolationResolutionError as error:
        reason = RAISED.sub("", str(error.msg)).partition("\n    full_key:")[0]
        raise ConfigError(f"{name}: {error.full_key}: {reason}") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        has_tabs = "cannot start any token" in str(error) and "\t" in Path(str(config)).read_text(errors="replace")
        tabs = "; indent with spaces, as YAML allows no tabs there" if has_tabs else ""
        raise ConfigError(f"{name} is not valid YAML: {error}{tabs}") from error
    except (
        LookupError,
        AttributeError,
        ValueError,
        RecursionError,
    ) as error:  # such as `!!int ""`, 10,000 digits or levels
        raise ConfigError(f"{name} is not valid YAML: {in_one_line(error)}") from error
    kind = kind_of(cast(Mapping[str, Any], content))
    try:
        job = kind.model_validate(content)
    except ValidationError as error:
        problems: list[str] = _explain(kind, error.errors())
        raise ConfigError("\n  ".join([f"{name}: {plural(len(problems), 'problem')}", *problems])) from None
    check_site_rules(job)
    return job


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """Reads `name=value` assignments; values are YAML, or patterns that begin with `*`.

    Example: `["params.batch_size=8"]` is `{"params.batch_size": 8}`.

    Raises:
        ConfigError: One has no `=`, or its value is not YAML.
    """
    overrides = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {assignment}: write it as --set params.batch_size=128")
        if value.startswith("*"):  # an alias in YAML, which could only refer to something else in the value
            overrides[name.strip()] = value
            continue
        try:
            overrides[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {assignment}: the value is not valid YAML ({error})") from error
    return overrides


def _check_length(job: DictConfig, name: str) -> None:
    """Refuses interpolations that would fill the memory, as ten lines of `${a}${a}` can.

    Estimates an upper bound: each word of an interpolation may be the name of any value, in any section.
    """
    values: dict[str, list[tuple[int, list[str]]]] = {}  # length of each value and the words in it, by name

    def collect(key: str, value: Any) -> tuple[int, list[str]]:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if inner is None:
            text = str(value)
            found = len(text), WORD.findall(text) if "${" in text else []
        else:
            parts = [collect(str(part), content) for part, content in inner]
            found = sum(length for length, _ in parts), [word for _, words in parts for word in words]
        values.setdefault(key, []).append(found)
        return found

    collect("", OmegaConf.to_container(job))
    lengths: dict[str, int] = {}
    for _ in range(MAX_STEPS):
        before, lengths = (
            lengths,
            {
                key: max(length + sum(lengths.get(word, 0) for word in words) for length, words in found)
                for key, found in values.items()
            },
        )
        if lengths[""] > MAX_CHARACTERS:
            raise ConfigError(
                f"{name} has more than {MAX_CHARACTERS} characters after each ${{...}} is replaced; shorten it"
            )
        if lengths == before:
            return


def _plain(job: BaseModel | Mapping[str, Any]) -> Any:
    """Returns the values that a job sets explicitly, without defaults."""
    return job.model_dump(mode="json", exclude_unset=True) if isinstance(job, BaseModel) else job


def _explain(kind: type[BaseModel], problems: list[Any]) -> list[str]:
    """Returns the errors of pydantic in plain words, one line per field."""
    explained: dict[str, str] = {}
    for problem in problems:
        name, about, siblings = _locate(kind, [str(part) for part in problem["loc"]])
        message = problem["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list, as in [a, b]")
        if problem["type"] == "extra_forbidden":
            close = difflib.get_close_matches(name.rpartition(".")[2], siblings, 1, 0.6)
            near = f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(siblings))}"
            explained[name] = f"{name}: unknown field; {near}"
        elif problem["type"] == "missing":
            explained[name] = f"{name}: missing ({about})"
        elif name in explained:  # another branch of a union
            explained[name] += f"; or {message}"
        elif isinstance(problem["input"], Mapping):
            explained[name] = f"{name or 'the job'}: {message}"
        else:
            explained[name] = f"{name} = {masked(repr(problem['input']))} ({about}): {message}"
    return list(explained.values())


def _locate(kind: type[BaseModel], location: list[str]) -> tuple[str, str, list[str]]:
    """Returns the dotted name of a field, without union branches, its description, and its sibling fields."""
    names: list[str] = []
    is_entry = False  # whether the next part is a key of a mapping of sections, not a field
    for i, part in enumerate(location):
        if part == "[key]":  # pydantic's mark
            break
        names.append(part)
        if is_entry:
            is_entry = False
            continue
        field = kind.model_fields.get(part)
        if field is None:
            return ".".join(names), "", list(kind.model_fields)
        section = _section(field.annotation)
        if section is None or i == len(location) - 1:
            is_mapping = any(get_origin(each) is dict for each in (field.annotation, *get_args(field.annotation)))
            key = location[i + 1 : i + 2] if is_mapping else []
            return ".".join(names + key), (field.description or "").rstrip("."), list(kind.model_fields)
        kind, is_entry = section, get_origin(field.annotation) is dict
    return ".".join(names), "", list(kind.model_fields)


def _section(annotation: Any) -> type[BaseModel] | None:
    options = [annotation, *get_args(annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
