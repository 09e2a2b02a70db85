"""Provides the Prefect API that a run reports to: the configured one, or a separate server during the run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlfilter_core.errors import MlfilterError

# The first start creates the database: about 10 s on a laptop, several times that on a slow disk.
STARTUP_TIMEOUT_S = 180


class ApiLostError(MlfilterError):
    """The Prefect API stopped answering, and Prefect's client gave up."""

    def __init__(self, error: Exception) -> None:
        from prefect.settings import PREFECT_API_URL

        super().__init__(
            f"the Prefect API at {PREFECT_API_URL.value()} was lost ({type(error).__name__}: {error}); it may show "
            "this run as Running, or without its last states and log lines. Finished files are kept, and a rerun skips "
            "them"
        )


def is_of_api(error: Exception) -> bool:
    """Returns whether an error comes from a request to the API."""
    from httpx import HTTPError

    return isinstance(error, HTTPError)


def keep_prefect_home_in(folder: Path) -> None:
    """Makes Prefect keep its files in `folder` instead of the user's home, unless Prefect is configured.

    Call it before Prefect is imported: the import creates the folder.
    """
    if "PREFECT_HOME" not in os.environ and not (Path.home() / ".prefect" / "profiles.toml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["PREFECT_HOME"] = str(folder.absolute())


def report_no_usage() -> None:
    """Turns off Prefect's telemetry, unless the user has set it; call it before Prefect is imported."""
    os.environ.setdefault("DO_NOT_TRACK", "1")


def api_is_configured() -> bool:
    """Returns whether the environment or a Prefect profile sets an API."""
    from prefect.settings import PREFECT_API_URL

    return bool(PREFECT_API_URL.value())


@contextmanager
def prefect_api(folder: Path) -> Iterator[None]:
    """Provides an API to the flows called in the block.

    If `PREFECT_API_URL` is set (environment or Prefect profile), that API is used. Otherwise a server is started for
    the block. Its database is in `folder`, so that `PREFECT_HOME=<folder> prefect server start` shows the run later.

    Args:
        folder: Folder of the database.
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
            APILogHandler().flush()  # otherwise the last lines are sent after the server has stopped
            server.stop()
