"""The README compared with the project."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
MAX_LINES = 220


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= MAX_LINES


def test_the_table_of_packages_is_complete() -> None:
    linked = set(re.findall(r"^\| \[`[^`]+`\]\(([^)]+)\)", README, re.MULTILINE))
    packages = {
        str(path.parent.relative_to(REPOSITORY))
        for folder in ("flows", "mlfilter_core")
        for path in (REPOSITORY / folder).glob("*/__init__.py")
    }
    assert packages <= linked


def test_of_the_commands_that_open_the_readme_ci_runs_the_tests() -> None:
    opening = README.partition("```bash\n")[2].partition("```")[0]
    commands = {line.partition("#")[0].strip() for line in opening.splitlines()}
    steps = {line.strip() for line in (REPOSITORY / ".ci/run").read_text().splitlines()}
    assert commands == {"make demo", "make test"}
    assert "make test" in steps  # make test runs make demo
