"""What the paths of a table tell that Spark, Hive or Delta wrote as a folder of files.

Knows nothing about the content of files.
"""

from pathlib import PurePosixPath
from urllib.parse import unquote

NULL_VALUE = "__HIVE_DEFAULT_PARTITION__"
OWN_MARK = "_"
# A reason, as the end of the sentence "3 of those that match ...".
ARE_OWN = f'are not data of Spark, Hive or Delta tables, as their names or folders begin with "{OWN_MARK}"'


def partition_values(relative: str) -> dict[str, str | None]:
    """Returns the keys and values in the names of a file's folders, those of the outer folders first.

    Example: `lang=de/time=12%3A30/part-0.parquet` has `{"lang": "de", "time": "12:30"}`.

    Args:
        relative: Path of the file below the folder of its corpus. What lies above never counts, so that a corpus that
            is moved gives the same documents.
    """
    named = (name.partition("=") for name in PurePosixPath(relative).parts[:-1])
    return {
        _unescaped(key): None if value == NULL_VALUE else _unescaped(value)
        for key, equals, value in named
        if key and equals
    }


def is_own_file(relative: str) -> bool:
    """Returns whether a path is of a file that a table's writer keeps for itself: `_SUCCESS`, `_delta_log/0.json`."""
    if not relative.startswith(OWN_MARK) and f"/{OWN_MARK}" not in relative:
        return False
    return any(name.startswith(OWN_MARK) and "=" not in name for name in PurePosixPath(relative).parts)


def _unescaped(name: str) -> str:
    try:
        return unquote(name, errors="strict")
    except UnicodeDecodeError:  # not escaped by a writer of tables
        return name
