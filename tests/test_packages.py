"""The packages that are installed when the project is not run from its checkout."""

import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_every_package_is_installed() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {".".join(path.parent.relative_to(REPOSITORY).parts) for path in REPOSITORY.glob("[fm]*/**/__init__.py")}
    predecessor = {"flows.predecessor": "ml_filter", "flows.predecessor.annotation": "ml_filter.annotation"}
    assert set(settings["packages"]) == {predecessor.get(name, name) for name in folders}
