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
