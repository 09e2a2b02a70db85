"""The packages that are installed when the project is not run from its checkout."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

from tests.conftest import LONG_FILES, REPOSITORY


def test_every_package_is_installed() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {".".join(path.parent.relative_to(REPOSITORY).parts) for path in REPOSITORY.glob("[fm]*/**/__init__.py")}
    predecessor = {"flows.predecessor": "ml_filter", "flows.predecessor.annotation": "ml_filter.annotation"}
    assert set(settings["packages"]) == {predecessor.get(name, name) for name in folders}


def test_the_wheel_runs_a_job_in_a_folder_that_has_its_own_flows(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").write_text("raise ImportError('the flows of the working folder')\n")
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PYTHONPATH": str(installed)}
    line = [installed / "bin" / "ml_filter", "embed", "--config", REPOSITORY / "deployments" / "local" / "embed.yaml"]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "embed: 4 files" in done.stdout
    said = done.stdout + done.stderr
    assert "No module named" not in said
    assert "of the working folder" not in said
    assert (tmp_path / "outputs" / "example" / "report" / "index.html").exists()  # from a template in the wheel


def test_no_test_module_imports_another() -> None:
    importing = re.compile(r"^(?:from|import) tests[.\w]*\btest_\w+", re.MULTILINE)
    found = [str(path) for path in REPOSITORY.glob("tests/**/*.py") if importing.search(path.read_text())]
    allowed = ["tests/mlfilter_core/embedding/test_committed.py"]  # in the script of a process that kills itself
    assert [str(Path(name).relative_to(REPOSITORY)) for name in found] == allowed


def test_the_long_files_that_start_first_exist() -> None:
    assert [name for name in LONG_FILES if not (REPOSITORY / "tests" / name).exists()] == []
