"""Real S3 servers on loopback: rclone's, which serves a folder, and moto's, with faults on request."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import s3fs
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from mlfilter_core.files import stores
from tests.conftest import within

KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
RCLONE = Path(sys.executable).with_name("rclone")


@contextmanager
def rclone_server(folder: Path, environment: MutableMapping[str, str]) -> Iterator[None]:
    """Serves the folders in a folder as buckets; the environment points to the server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [RCLONE, "serve", "s3", folder, "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}"]
    command += ["--config", os.devnull, "--cache-dir", folder.parent / "rclone-cache", "--dir-cache-time", "1ms"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        within(20, lambda: _answers(port))
        with _pointing_to(port, environment):
            yield
    finally:
        server.kill()
        server.wait()


@dataclass
class Faults:
    """moto, whose answers a test can replace.

    Attributes:
        requests: All requests so far, as in `GET /bucket/key`.
        rules: Called for each request; the first answer that is not None is sent instead of moto's.
        cut: Called for each request; True breaks the connection in the middle of the content.
    """

    requests: list[str] = field(default_factory=list)
    rules: list[Callable[[str], "Answer | None"]] = field(default_factory=list)
    cut: Callable[[str], bool] = lambda request: False
    _moto: Any = field(default_factory=lambda: DomainDispatcherApplication(create_backend_app))

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        self.requests.append(request)
        for rule in list(self.rules):
            if (answer := rule(request)) is not None:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response(answer.status, [("Content-Type", "application/xml")])
                return [answer.content()]
        content = self._moto(environ, start_response)
        return _cut(content) if self.cut(request) else content

    def count(self, request: str) -> int:
        return self.requests.count(request)


@dataclass(frozen=True)
class Answer:
    """An error of S3."""

    status: str
    code: str

    def content(self) -> bytes:
        return f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>{self.code}.</Message></Error>".encode()


SLOW_DOWN = Answer("503 Slow Down", "SlowDown")
EXPIRED = Answer("400 Bad Request", "ExpiredToken")
DENIED = Answer("403 Forbidden", "AccessDenied")


def store() -> Any:
    """Returns the store as another program sees it."""
    return s3fs.S3FileSystem(use_listings_cache=False)


def times(n: int, answer: Answer, request: str) -> Callable[[str], Answer | None]:
    """Returns a rule that answers the first requests that begin so."""
    left = iter(range(n))
    return lambda asked: answer if asked.startswith(request) and next(left, None) is not None else None


@contextmanager
def moto_server(environment: MutableMapping[str, str]) -> Iterator[Faults]:
    """Serves S3 from memory; the environment points to the server."""
    faults = Faults()
    server = make_server("127.0.0.1", 0, faults, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        reset = Request(f"http://127.0.0.1:{server.server_port}/moto-api/reset", method="POST")
        urlopen(reset).close()  # its memory is that of the process
        with _pointing_to(server.server_port, environment):
            yield faults
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


def _cut(content: Iterable[bytes]) -> Iterator[bytes]:
    whole = b"".join(content)
    yield whole[: len(whole) // 2]
    raise ConnectionAbortedError("cut by the test")


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _pointing_to(port: int, environment: MutableMapping[str, str]) -> Iterator[None]:

    own = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",  # as s3fs and the core try again
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: environment.get(name) for name in own}
    environment.update(own)
    _forget_stores()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value
        _forget_stores()


def _forget_stores() -> None:
    stores._opened.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
