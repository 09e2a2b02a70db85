"""A run on a machine that lacks what others have: as in containers, and on the nodes of some clusters."""

import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from tests.conftest import REPOSITORY
from tests.flows.conftest import WriteJob
from tests.machines import without_locks
from tests.terminal import on_terminal

UNKNOWN = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
HIDDEN = ("HOME", "USER", "LOGNAME", "USERNAME", "LNAME", "LC_ALL", "LC_CTYPE", "PREFECT_HOME", "PREFECT_API_URL")


@pytest.mark.timeout(2400)
def test_a_run_without_home_user_locks_and_locale(embed_job: WriteJob, corpus: Path, tmp_path: Path) -> None:
    """The user has no name and no home, TMPDIR a long name, the output folder no locks, the terminal no characters."""
    if subprocess.run([*UNKNOWN, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are not available here")
    (corpus / "a/x.jsonl").rename(corpus / "a/Приклад-für.jsonl")
    temporary = tmp_path / ("t" * 200)
    temporary.mkdir()
    output = tmp_path / "out"
    own = {"TMPDIR": str(temporary), "LANG": "C", "PYTHONPATH": str(REPOSITORY), "HF_HOME": "/proc/nothing"}
    line = [
        *UNKNOWN,
        *("prlimit", "--nofile=80:256"),
        *("env", *(word for name in HIDDEN for word in ("-u", name))),
        *(f"{name}={value}" for name, value in without_locks(output, tmp_path).items()),
        *(Path(sys.executable).parent / "ml_filter", "embed", "--config", embed_job()),
    ]
    screen = on_terminal(line, tmp_path, 40, own, term="dumb")
    assert screen.status == 0, screen.written
    assert f"warning: the file system of {output} has no locks; start one run at a time on it" in screen.text
    assert f"Prefect's records of this run are in {temporary}/mlfilter-prefect-" in screen.text
    assert "Traceback" not in screen.text
    assert list(temporary.iterdir()) == []
    documents = {}
    for path in output.rglob("*.h5"):
        with h5py.File(path, "r") as file:
            documents[path.name] = len(file["train/document_id"])
    assert documents == {"Приклад-für.h5": 5, "x.h5": 7, "y.h5": 9}
