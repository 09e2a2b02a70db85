"""Errors of reading NumPy archives."""

import errno
import zipfile

import pytest

from mlfilter_core.files.numpy_archives import is_damage


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (zipfile.BadZipFile("not a zip file"), True),
        (KeyError("facts.npy"), True),
        (FileNotFoundError(errno.ENOENT, "gone"), True),
        (OSError(errno.EINVAL, "a place before 0"), True),
        (OSError("of zipfile, without a number"), True),
        (OSError(errno.EIO, "of the disk"), False),
        (PermissionError(errno.EACCES, "of the folder"), False),
    ],
)
def test_errors_of_the_file_system_are_told_from_damage(error: Exception, expected: bool) -> None:
    assert is_damage(error) is expected
