"""The options of each command, generated from the command line itself, so that both always agree.

A hook of MkDocs: replaces `<!-- commands -->` by a section for each command.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import typer

from flows.commands.app import build_app

PLACEHOLDER = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the commands into a page."""
    return markdown.replace(PLACEHOLDER, "\n\n".join(_section(*item) for item in commands().items()))


def commands() -> dict[str, Any]:
    """Returns each command that `ml_filter --help` shows, by its name."""
    found = typer.main.get_command(build_app()).commands  # type: ignore[attr-defined]
    return {name.replace("_", "-"): command for name, command in found.items() if not command.hidden}


def _section(name: str, command: Any) -> str:
    lines = [f"## `{name}`", inspect.cleandoc(command.help or ""), "| Option | Meaning |\n| --- | --- |"]
    lines[-1] += "".join(f"\n| {option} | {meaning} |" for option, meaning in _options(command))
    return "\n\n".join(lines)


def _options(command: Any) -> Iterator[tuple[str, str]]:
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        is_argument = parameter.param_type_name == "argument"
        metavar = parameter.metavar or ("" if getattr(parameter, "is_flag", False) else "VALUE")
        names = f"`{(parameter.metavar or parameter.name).upper()}`" if is_argument else _names(parameter.opts, metavar)
        meaning = (getattr(parameter, "help", None) or "").replace("|", "\\|").replace("<", "&lt;")
        yield names, f"{meaning}{' **Required.**' if parameter.required and not is_argument else ''}"


def _names(names: list[str], metavar: str) -> str:
    """Returns an option's names; of spellings with dashes and with underscores, those with dashes."""
    shown = dict.fromkeys(name.replace("_", "-") for name in names)
    value = f" {metavar}".replace("|", "\\|") if metavar else ""
    return ", ".join(f"`{name}{value}`" for name in shown)
