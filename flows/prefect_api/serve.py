"""The process of a temporary Prefect server, on a socket that its parent listens on.

python -P flows/prefect_api/serve.py <file descriptor>

It is started by its path: the working folder may have a package `flows` of its own. It ends some time after its parent,
which holds the other end of its standard input.
"""

import gc
import os
import socket
import sys
import threading
import time

# Time for the guard of a killed run (flows.prefect_api.left_running) to report its end here.
LINGER_S = 30


def main() -> None:
    threading.Thread(target=_end_after_parent, daemon=True).start()
    gc.disable()  # imports make a million objects and no garbage; looking for it takes a tenth of the time
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    gc.freeze()
    gc.enable()
    config = uvicorn.Config(app, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


def _end_after_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # a pipe that the parent wrote to shall end with it
        os.dup2(nowhere, stream)
    time.sleep(LINGER_S)
    os._exit(0)


if __name__ == "__main__":
    main()
