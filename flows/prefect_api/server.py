"""The Prefect API that a run reports to: the configured one, or one of its own for as long as it runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlfilter_core.errors import MlfilterError

# A laptop's first start creates the database: about 10 s here, several times that on a slow disk.
STARTUP_TIMEOUT_S = 180


class ApiLostError(MlfilterError):
    """The Prefect API did not answer any more, for as long as Prefect's client tries."""

    def __init__(self, error: Exception) -> None:
        from prefect.settings import PREFECT_API_URL

        super().__init__(
            f"the Prefect API at {PREFECT_API_URL.value()} was lost ({type(error).__name__}: {error}); it may show "
            "this run as Running, or without its last states and lines. Finished files stay, and a rerun leaves "
            "them as they are"
        )


def is_of_api(error: Exception) -> bool:
    """Tells whether an error is that of asking the API."""
    from httpx import HTTPError

    return isinstance(error, HTTPError)


def keep_prefect_home_in(folder: Path) -> None:
    """Lets Prefect keep its files in `folder` instead of the user's home, where nobody configured it.

    Works only before Prefect is imported: the import creates its home.
    """
    if "PREFECT_HOME" not in os.environ and not (Path.home() / ".prefect" / "profiles.toml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["PREFECT_HOME"] = str(folder.absolute())


def report_no_usage() -> None:
    """Keeps Prefect from telling its makers how it is used, unless the user wants that; works before it is imported."""
    os.environ.setdefault("DO_NOT_TRACK", "1")


def api_is_configured() -> bool:
    """Tells whether there is an API, by the environment or a Prefect profile."""
    from prefect.settings import PREFECT_API_URL

    return bool(PREFECT_API_URL.value())


@contextmanager
def prefect_api(folder: Path) -> Iterator[None]:
    """Provides an API to the flows called in the block.

    With `PREFECT_API_URL` set (environment or Prefect profile), that API is used. Without, one server
    is started for the block; its database lies in `folder`, so that `PREFECT_HOME=<folder> prefect
    server start` shows the run later. Left alone, every Dask worker would start a server of its own.

    Args:
        folder: For the database.
    """
    from prefect.logging.handlers import APILogHandler
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_SERVER_ANALYTICS_ENABLED,
        PREFECT_SERVER_DATABASE_CONNECTION_URL,
        temporary_settings,
    )

    if api_is_configured():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    database = f"sqlite+aiosqlite:///{folder.absolute()}/prefect.db"
    with temporary_settings(
        {PREFECT_SERVER_DATABASE_CONNECTION_URL: database, PREFECT_SERVER_ANALYTICS_ENABLED: False}
    ):
        server = SubprocessASGIServer()
        server.start(STARTUP_TIMEOUT_S)
        try:
            with temporary_settings({PREFECT_API_URL: server.api_url}):
                yield
        finally:
            APILogHandler().flush()  # else the last lines are sent to a server that is gone
            server.stop()
