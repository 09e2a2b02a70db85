"""What was compared with sentence-transformers, from the result file of the benchmark, so that the page cannot lie.

A hook of MkDocs: replaces `<!-- fidelity -->` by a table with a row for each family of encoders.
"""

import json
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "fidelity.json"
PLACEHOLDER = "<!-- fidelity -->"
DIFFERENCE = "_float32_difference"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the table into a page."""
    return markdown.replace(PLACEHOLDER, table(json.loads(RESULT.read_text(encoding="utf-8"))))


def table(figures: dict[str, Any]) -> str:
    """Returns the figures as a table, with the machine, date and versions under it."""
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
    about = ", ".join(str(figures[name]) for name in ("texts", "machine", "versions", "date"))
    return "\n".join(lines) + f"\n\n{about}."
