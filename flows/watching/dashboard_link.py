"""Links Dask's dashboard of a run in the Prefect UI."""

import logging
import socket
from urllib.parse import urlsplit

from httpx import HTTPError
from prefect.artifacts import create_link_artifact

_log = logging.getLogger(__name__)


def link_dashboard(link: str | None, flow: str) -> None:
    """Creates an artifact of the run that links Dask's dashboard; logs a warning if the API does not answer.

    Args:
        link: Address of the dashboard, which answers on the flow's machine only; None creates nothing.
        flow: Name of the flow.
    """
    if link is None:
        return
    port, host = urlsplit(link).port, socket.gethostname()
    about = (
        f"Dask's dashboard: workers, their tasks and memory, while the run lasts. It answers on {host} only; from "
        f"another machine, run `ssh -N -L {port}:127.0.0.1:{port} {host}` first."
    )
    try:
        create_link_artifact(link, "Dask dashboard", f"{flow.replace('_', '-')}-dashboard", about)
    except HTTPError as error:
        _log.warning("the Prefect UI lacks the link to Dask's dashboard: %s: %s", type(error).__name__, error)
