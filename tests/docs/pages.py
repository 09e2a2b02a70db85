"""The pages of the documentation and their contents."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "deployments/README.md")
PAGES = sorted([*(REPOSITORY / name for name in OUTSIDE), *DOCS.rglob("*.md")])
FENCE = re.compile(r"^( *)```(?P<language>\w*)(?P<about>[^\n]*)\n(?P<content>.*?)^\1```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Returns the code blocks of a language, each with the text after the language's name."""
    found = FENCE.finditer(page.read_text())
    return [(block["about"].strip(), block["content"]) for block in found if block["language"] == language]


def prose(page: Path) -> str:
    """Returns a page without its code blocks."""
    return FENCE.sub("", page.read_text())


def name_of(page: Path) -> str:
    """Returns the name of a test about a page."""
    return str(page.relative_to(REPOSITORY))
