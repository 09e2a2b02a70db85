"""Gives a new Prefect database its tables by a copy, as Prefect's hundred migrations take seconds.

The copy is of the first database that a version of Prefect made for this user; it has tables and block types, and no
runs. It is kept in the user's folder for caches, if there is one: a run makes no new folder in a home.
"""

import os
import shutil
import sqlite3
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

# Prefect's settings of a server whose database is up to date.
UP_TO_DATE = {"PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false", "PREFECT_API_BLOCKS_REGISTER_ON_START": "false"}


def has_tables(database: Path) -> bool:
    """Returns whether a database has the tables of the installed Prefect; a new one is copied if possible."""
    template = template_of_user()
    revision = _revision(template)
    if revision is None:
        return False
    if not database.exists():
        _copy(template, database)
    return _revision(database) == revision


def keep_as_template(database: Path) -> None:
    """Keeps a copy of a database without runs for later ones, unless there is one, or it cannot be written."""
    template = template_of_user()
    if _revision(template) is not None or not template.parent.parent.is_dir():
        return
    temporary = template.with_name(f"{template.name}.{uuid4().hex}")
    with suppress(OSError, sqlite3.Error):
        template.parent.mkdir(exist_ok=True)
        try:
            temporary.touch(mode=0o600)
            with closing(sqlite3.connect(database)) as made, closing(sqlite3.connect(temporary)) as kept:
                made.backup(kept)
            os.replace(temporary, template)
        finally:
            temporary.unlink(missing_ok=True)


def template_of_user() -> Path:
    """Returns where the copy for the installed Prefect is: in the user's folder for caches."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "mlfilter" / f"prefect-{version('prefect')}.db"


def _copy(template: Path, database: Path) -> None:
    temporary = database.with_name(f"{database.name}.{uuid4().hex}")
    with suppress(OSError):  # another run may have made the database, or the disk may have no links: Prefect migrates
        try:
            temporary.touch(mode=0o600)
            shutil.copyfile(template, temporary)
            os.link(temporary, database)  # unlike a rename, never replaces a database
        finally:
            temporary.unlink(missing_ok=True)


def _revision(database: Path) -> str | None:
    """Returns the last migration of a database; None if it is missing, broken, or has none."""
    if not database.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return None
    return str(row[0]) if row else None
