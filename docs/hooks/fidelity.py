"""What was compared with other libraries, from the result files of the benchmarks, so that the pages cannot lie.

A hook of MkDocs: replaces `<!-- fidelity -->` by a table with a row for each family of encoders, and
`<!-- head_fidelity -->` by one with a row for each format of heads.
"""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
ENCODERS, HEADS = "<!-- fidelity -->", "<!-- head_fidelity -->"
DIFFERENCE = "_float32_difference"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the tables into a page."""
    markdown = markdown.replace(ENCODERS, encoders(_figures("fidelity")))
    return markdown.replace(HEADS, heads(_figures("head_fidelity")))


def heads(figures: dict[str, Any]) -> str:
    """Returns the figures of heads as a table, with the machine, date and versions under it."""
    rows = [
        f"| {name.replace('_', ' ')} | {value:.0e} |" for name, value in figures.items() if isinstance(value, float)
    ]
    return "\n".join(["| Format | Largest difference |", "| --- | --- |", *rows]) + _about(figures, "machine")


def encoders(figures: dict[str, Any]) -> str:
    """Returns the figures of encoders as a table, with the texts, machine, date and versions under it."""
    families = [name.removesuffix(DIFFERENCE) for name in figures if name.endswith(DIFFERENCE)]
    lines = [
        "| Family | float32: largest difference | Unpadded | bfloat16: lowest cosine, ours | the same, "
        "sentence-transformers |",
        "| --- | --- | --- | --- | --- |",
    ]
    for family in families:
        cosines = {name: value for name, value in figures.items() if name.startswith(f"{family}_bfloat16_cosine_")}
        theirs = [value for name, value in cosines.items() if name.endswith("_sentence_transformers")]
        ours = [value for name, value in cosines.items() if not name.endswith("_sentence_transformers")]
        is_unpadded = "yes" if figures[f"{family}_is_unpadded"] else "no"
        lines.append(
            f"| {family.replace('_', ' ')} | {figures[family + DIFFERENCE]:.0e} | {is_unpadded} | {min(ours):.4f} "
            f"| {min(theirs):.4f} |"
        )
    return "\n".join(lines) + _about(figures, "texts", "machine")


def _figures(name: str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return figures


def _about(figures: dict[str, Any], *facts: str) -> str:
    return "\n\n" + ", ".join(str(figures[name]) for name in (*facts, "versions", "date")) + "."
