"""The process of a temporary Prefect server, on a socket that its parent listens on.

python -P flows/prefect_api/serve.py <file descriptor>

It is started by its path: the working folder may have a package `flows` of its own. It ends some time after its parent,
which holds the other end of its standard input, a socket.
"""

import gc
import logging
import os
import socket
import sqlite3
import sys
import threading
import time
from contextlib import suppress
from typing import Any

# Time for the guard of a killed run (flows.prefect_api.left_running) to report its end here.
LINGER_S = 30
# Results of SQLite that are the same for each later write.
LASTING = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def main() -> None:
    threading.Thread(target=_end_after_parent, daemon=True).start()
    gc.disable()  # imports make a million objects and no garbage; looking for it takes a tenth of the time
    import uvicorn
    from prefect.server.api.server import create_app

    _tell_parent_of_broken_database()
    app = create_app(ephemeral=True, final=True)
    gc.freeze()
    gc.enable()
    config = uvicorn.Config(app, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    # A server that is told to end while it starts calls that a failure.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
    server.run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


def _end_after_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    _say_no_more()  # a pipe that the parent wrote to shall end with it
    time.sleep(LINGER_S)
    os._exit(0)


def _tell_parent_of_broken_database() -> None:
    """Writes the first lasting error of the database to the parent; Prefect would print each one, for minutes."""
    from sqlalchemy import Engine, event

    def tell(context: Any) -> None:
        error = context.original_exception
        if isinstance(error, sqlite3.Error) and (getattr(error, "sqlite_errorcode", 0) & 0xFF) in LASTING:
            with suppress(OSError):  # the parent has ended
                os.write(sys.stdin.fileno(), str(error).encode())
            _say_no_more()

    event.listen(Engine, "handle_error", tell)


def _say_no_more() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


if __name__ == "__main__":
    main()
