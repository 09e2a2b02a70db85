"""A server that answers as the Hugging Face hub does, with one repository."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(repository: str, folder: Path) -> Iterator[str]:
    """Serves a folder as a repository; gives the address for HF_ENDPOINT."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    digests = {name: hashlib.sha1(content).hexdigest() for name, content in files.items()}

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_content=False)

        def do_GET(self) -> None:
            self._answer(with_content=True)

        def _answer(self, with_content: bool) -> None:
            path = self.path.partition("?")[0]
            api, resolved = f"/api/models/{repository}", f"/{repository}/resolve/{COMMIT}/"
            if path.startswith(resolved) and path.removeprefix(resolved) in files:
                name = path.removeprefix(resolved)
                headers = {"ETag": f'"{digests[name]}"', "X-Repo-Commit": COMMIT}
                self._send(files[name] if with_content else None, len(files[name]), headers)
            elif path == f"{api}/tree/{COMMIT}":
                tree = [
                    {"type": "file", "path": name, "size": len(content), "oid": digests[name]}
                    for name, content in files.items()
                ]
                self._send_json(tree)
            elif path in (api, f"{api}/revision/main"):
                self._send_json({"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def _send_json(self, content: Any) -> None:
            body = json.dumps(content).encode()
            self._send(body, len(body), {"Content-Type": "application/json"})

        def _send(self, body: bytes | None, size: int, headers: dict[str, str]) -> None:
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(size)}.items():
                self.send_header(name, value)
            self.end_headers()
            if body is not None:
                self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
