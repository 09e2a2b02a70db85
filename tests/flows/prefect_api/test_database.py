import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flows.prefect_api.database import has_tables, keep_as_template, template_of_user
from flows.prefect_api.server import TemporaryServer


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder for caches, which is empty."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def made(database: Path, revision: str) -> Path:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
    return database


def test_a_new_database_is_a_copy_of_the_template(cache: Path, tmp_path: Path) -> None:
    database = tmp_path / "prefect.db"
    assert not has_tables(database)
    assert not database.exists()
    keep_as_template(made(tmp_path / "first.db", "b2"))
    assert has_tables(database)
    assert database.read_bytes() == template_of_user().read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "first.db", "prefect.db"]


def test_a_database_of_another_version_is_migrated(cache: Path, tmp_path: Path) -> None:
    keep_as_template(made(tmp_path / "first.db", "b2"))
    older = made(tmp_path / "older.db", "a1")
    before = older.read_bytes()
    assert not has_tables(older)
    assert older.read_bytes() == before


def test_a_broken_template_is_replaced(cache: Path, tmp_path: Path) -> None:
    template_of_user().parent.mkdir()
    template_of_user().write_bytes(b"SQLite format 3\0 and then the disk was full")
    assert not has_tables(tmp_path / "prefect.db")
    keep_as_template(made(tmp_path / "first.db", "b2"))
    assert has_tables(tmp_path / "prefect.db")


def test_no_folder_for_caches_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    keep_as_template(made(tmp_path / "first.db", "b2"))
    assert not (tmp_path / "none").exists()


def test_a_server_makes_the_template_and_the_next_one_starts_from_it(cache: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        database = tmp_path / name / "prefect.db"
        server = TemporaryServer(tmp_path / name, {})
        try:
            assert has_tables(database) == (name == "second")
            server.wait()
        finally:
            server.stop()
        assert has_tables(database)
    with closing(sqlite3.connect(template_of_user())) as connection:
        assert connection.execute("SELECT COUNT(*) FROM flow_run").fetchone() == (0,)
        assert connection.execute("SELECT COUNT(*) FROM block_type").fetchone() > (0,)
