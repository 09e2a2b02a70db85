import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.conftest import write_embeddings


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_of_any_script_are_printed_on_any_terminal(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "Приклад-für.h5"
    write_embeddings(path, 2)
    script = Path(sys.executable).parent / "ml_filter"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([script, "inspect", path], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = path.name.encode(encoding, "backslashreplace")
    assert shown in done.stdout


def test_a_user_without_a_home_can_print_help(tmp_path: Path) -> None:
    """In a user namespace without an entry in the list of users, as in a container."""
    unknown = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    if subprocess.run([*unknown, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are not available here")
    code = "from flows.running.script import fit_any_machine; fit_any_machine(); import prefect"
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    environment["PREFECT_HOME"] = str(tmp_path)
    line = [*unknown, sys.executable, "-c", code]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
