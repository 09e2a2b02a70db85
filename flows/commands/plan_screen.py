"""A plan on the terminal."""

import sys

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlfilter_core.plan.plan import Plan
from mlfilter_core.wording import plural

PIPED_WIDTH = 120
TITLE_WIDTH = 10


def print_plan(plan: Plan, config: str, as_json: bool) -> None:
    """Prints a plan: its facts on standard output, its problems on standard error.

    Args:
        plan: The plan.
        config: Name of the job file.
        as_json: Whether to print JSON, which contains the problems too.
    """
    if as_json:
        print(orjson.dumps(plan.to_json(), option=orjson.OPT_INDENT_2).decode())
        return
    # Without a terminal, rich takes 80 columns, which would break paths.
    out = Console(highlight=False) if sys.stdout.isatty() else Console(width=PIPED_WIDTH, highlight=False)
    out.print(Text(f"plan of {config}: {plan.flow}", style="bold"))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(width=TITLE_WIDTH, style="cyan")
    table.add_column(overflow="fold")
    for section in plan.sections:
        for title, words in section.lines:
            table.add_row(title, Text(words))
    out.print(table)
    if plan.recommended:
        out.print(Text("on Slurm:", style="cyan"))
        out.print(Text(plan.recommended.rstrip()), soft_wrap=True)
    for warning in plan.warnings:
        out.print(Text.assemble(("warning: ", "yellow"), warning), soft_wrap=True)
    if not plan.problems:
        out.print(Text("no problems found", style="green"))
        return
    sys.stdout.flush()
    err = Console(stderr=True, highlight=False)
    err.print(Text(f"{plural(len(plan.problems), 'problem')}:", style="bold red"))
    for problem in plan.problems:
        err.print(Text.assemble(("  - ", "red"), problem.replace("\n", "\n    ")), soft_wrap=True)
