"""Provides the Prefect API that a run reports to: the configured one, or a separate server during the run."""

import http.client
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from flows.prefect_api import serve
from flows.prefect_api.database import UP_TO_DATE, has_tables, keep_as_template
from flows.prefect_api.database_disk import DatabaseError, check_room
from mlfilter_core.errors import MlfilterError
from mlfilter_core.files.urls import masked

# The first start creates the database: about 10 s on a laptop, several times that on a slow disk.
STARTUP_TIMEOUT_S = 180
# Time that a server gets to end by itself. It has nothing left to do: all was flushed before.
STOP_S = 5
LOOPBACK = "127.0.0.1"
# Variables that can set an API, directly or by a profile, and files of the working directory that do if they contain
# the word (https://docs.prefect.io/v3/concepts/settings-and-profiles).
API_VARIABLES = ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH")
SETTINGS_FILES = ((".env", "PREFECT"), ("prefect.toml", ""), ("pyproject.toml", "[tool.prefect"))


class ServerError(MlfilterError):
    """The temporary Prefect server did not start; its process has written why."""


class ApiLostError(MlfilterError):
    """The Prefect API stopped answering, and Prefect's client gave up."""

    def __init__(self, error: Exception) -> None:
        from prefect.settings import PREFECT_API_URL

        super().__init__(
            f"the Prefect API at {masked(str(PREFECT_API_URL.value()))} was lost ({type(error).__name__}: {error}); "
            "it may show this run as Running, or without its last states and log lines. Finished files are kept, and a "
            "rerun continues"
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


def may_set_api(folder: Path) -> bool:
    """Returns whether the environment or a file of Prefect's settings may set an API; does not import Prefect.

    Args:
        folder: Folder of `keep_prefect_home_in`.
    """
    home, profiles = os.environ.get("PREFECT_HOME"), folder / "profiles.toml"
    return (
        home != str(folder.absolute())
        or profiles.exists()
        or any(os.environ.get(name) for name in API_VARIABLES)
        or any(
            Path(name).is_file() and word in Path(name).read_text("utf-8", "replace") for name, word in SETTINGS_FILES
        )
    )


def api_is_configured() -> bool:
    """Returns whether the environment or a Prefect profile sets an API."""
    from prefect.settings import PREFECT_API_URL

    return bool(PREFECT_API_URL.value())


class TemporaryServer:
    """A Prefect server on this machine, in a process that starts while this one goes on.

    Attributes:
        password: User and password, which its clients need: other users of the machine can reach the port.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        """Starts the process.

        Args:
            folder: Folder of its database.
            settings: Prefect's settings beside those of the environment.

        Raises:
            DatabaseError: The disk is nearly full.
        """
        folder.mkdir(parents=True, exist_ok=True)
        check_room(folder)
        self._folder = folder
        self._problem = ""
        self._database = folder.absolute() / "prefect.db"
        self._is_new = not self._database.exists()
        self.password = f"mlfilter:{secrets.token_urlsafe()}"
        environment = {
            # Events would take two thirds of its database; nothing reads them here.
            "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
            **os.environ,
            **settings,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{self._database}",
            "PREFECT_SERVER_API_AUTH_STRING": self.password,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "false",
            **(UP_TO_DATE if has_tables(self._database) else {}),
        }
        # The server gets a socket that listens already: requests wait until it accepts them, and the port is free.
        self._line, its_end = socket.socketpair()
        with socket.create_server((LOOPBACK, 0)) as listening, its_end:
            self._port = listening.getsockname()[1]
            descriptor = listening.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-P", serve.__file__, str(descriptor)],
                env=environment,
                pass_fds=[descriptor],
                stdin=its_end.fileno(),  # this process has the other end, and the server ends after it
                umask=0o077,  # a database is for its user alone
                start_new_session=True,  # Ctrl-C on a terminal is for this process, which still needs the server
            )

        threading.Thread(target=self._listen, name="Prefect server", daemon=True).start()

    @property
    def api_url(self) -> str:
        """Address of the API."""
        return f"http://{LOOPBACK}:{self._port}/api"

    def wait(self) -> None:
        """Waits until the API answers.

        Raises:
            DatabaseError: The database cannot be written.
            ServerError: The process has ended, or does not answer in time.
        """
        connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=STARTUP_TIMEOUT_S)
        with closing(connection):
            try:
                connection.request("GET", "/api/health")
                status = connection.getresponse().status
            except (OSError, http.client.HTTPException) as error:
                self.check()
                raise ServerError(f"the temporary Prefect server does not answer ({type(error).__name__})") from error
        if status != http.HTTPStatus.OK:
            raise ServerError(f"the temporary Prefect server answers with status {status}")
        if self._is_new:
            keep_as_template(self._database)

    def check(self) -> None:
        """Checks that the server can still write to its database.

        Raises:
            DatabaseError: It cannot.
        """
        if self._problem:
            raise DatabaseError(self._folder, self._problem)

    def stop(self) -> None:
        """Ends the process, within seconds."""
        self._process.terminate()
        try:
            self._process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with suppress(OSError), self._line:  # the server may have closed its end
            self._line.shutdown(socket.SHUT_RDWR)  # ends the thread

    def _listen(self) -> None:
        with suppress(OSError):
            self._problem = self._line.recv(1024).decode(errors="replace")
        if self._problem:
            # Prefect's client would print an error for each log line that the server cannot take.
            logging.raiseExceptions = False


# The server of the block of `prefect_api`.
_own: ContextVar[TemporaryServer | None] = ContextVar("own server", default=None)


def check_own_server() -> None:
    """Checks that the server of this run, if it has one of its own, can still write to its database.

    Raises:
        DatabaseError: It cannot.
    """
    own = _own.get()
    if own is not None:
        own.check()


@contextmanager
def server_ahead(folder: Path) -> Iterator[TemporaryServer | None]:
    """Starts a temporary server before Prefect is imported, if a run in the block will certainly need one.

    Gives None if the environment or a Prefect profile may set an API; `prefect_api` finds out. The server of a block
    that fails is stopped.

    Args:
        folder: Folder of the database.
    """
    if may_set_api(folder):
        yield None
        return
    server = TemporaryServer(folder, {})
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def prefect_api(folder: Path, ahead: TemporaryServer | None = None) -> Iterator[None]:
    """Provides an API to the flows called in the block.

    If `PREFECT_API_URL` is set (environment or Prefect profile), that API is used. Otherwise a server is started for
    the block. Its database is in `folder`, so that `PREFECT_HOME=<folder> prefect server start` shows the run later.

    Args:
        folder: Folder of the database.
        ahead: Server that has been started; who did so stops it.
    """
    from prefect.logging.handlers import APILogHandler
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_UI_URL,
        get_current_settings,
        temporary_settings,
    )

    if api_is_configured():
        if ahead is not None:
            ahead.stop()
        yield
        return
    own = ahead or TemporaryServer(folder, get_current_settings().to_environment_variables(exclude_unset=True))
    try:
        own.wait()
        # Without an address of a UI, which the server does not have, Prefect shows no link to it.
        settings = {PREFECT_API_URL: own.api_url, PREFECT_API_AUTH_STRING: own.password, PREFECT_UI_URL: ""}
        token = _own.set(own)
        with temporary_settings(settings):
            try:
                yield
            except Exception:
                own.check()  # its database is the reason of errors of requests
                raise
            finally:
                _own.reset(token)
                APILogHandler().flush()  # otherwise the last lines are sent after the server has stopped
    finally:
        if ahead is None:
            own.stop()
