import logging
from pathlib import Path

import pytest

from flows.watching.logs import logging_to


def test_a_process_says_once_that_lines_of_its_log_are_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A worker opens its log for each task."""
    (tmp_path / "worker.log").symlink_to("/dev/full")
    for _ in range(3):
        with logging_to(tmp_path, "worker", logging.NullHandler()):
            logging.getLogger("flows").warning("a line")
    assert capsys.readouterr().err.count("worker.log cannot be written ([Errno 28] No space left on device)") == 1
