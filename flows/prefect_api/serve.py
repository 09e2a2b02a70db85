"""The process of a temporary Prefect server, on a socket that its parent listens on.

python -m flows.prefect_api.serve <file descriptor>
"""

import gc
import socket
import sys


def main() -> None:
    gc.disable()  # imports make a million objects and no garbage; looking for it takes a tenth of the time
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    gc.freeze()
    gc.enable()
    config = uvicorn.Config(app, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
