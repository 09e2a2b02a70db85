"""The packages that are installed when the project is not run from its checkout."""

import re
import tomllib
from pathlib import Path

from tests.conftest import LONG_FILES

REPOSITORY = Path(__file__).parents[1]


def test_every_package_is_installed() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {".".join(path.parent.relative_to(REPOSITORY).parts) for path in REPOSITORY.glob("[fm]*/**/__init__.py")}
    predecessor = {"flows.predecessor": "ml_filter", "flows.predecessor.annotation": "ml_filter.annotation"}
    assert set(settings["packages"]) == {predecessor.get(name, name) for name in folders}


def test_no_test_module_imports_another() -> None:
    importing = re.compile(r"^(?:from|import) tests[.\w]*\btest_\w+", re.MULTILINE)
    found = [str(path) for path in REPOSITORY.glob("tests/**/*.py") if importing.search(path.read_text())]
    allowed = ["tests/mlfilter_core/embedding/test_committed.py"]  # in the script of a process that kills itself
    assert [str(Path(name).relative_to(REPOSITORY)) for name in found] == allowed


def test_the_long_files_that_start_first_exist() -> None:
    assert [name for name in LONG_FILES if not (REPOSITORY / "tests" / name).exists()] == []
