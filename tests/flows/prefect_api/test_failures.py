import errno
import os

import pytest
from prefect.states import Failed

from flows.prefect_api.failures import can_heal
from mlfilter_core.errors import SourceError


@pytest.mark.parametrize(
    ("error", "heals"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (TimeoutError(), True),
        (OSError("HDF5: unable to write"), True),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), False),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (SourceError("x.jsonl:3: fix it"), False),
        (ValueError("a bug"), False),
    ],
    ids=repr,
)
def test_only_passing_errors_of_the_file_system_are_worth_another_try(error: Exception, heals: bool) -> None:
    assert can_heal(None, None, Failed(data=error)) is heals
