"""Where a run's workers can be looked at through Dask's own eyes, as a link in the Prefect UI."""

import logging
import socket
from urllib.parse import urlsplit

from prefect.artifacts import create_link_artifact

from flows.prefect_api.server import is_of_api

_log = logging.getLogger(__name__)


def link_dashboard(link: str | None, flow: str) -> None:
    """Links Dask's dashboard as an artifact of the run. An API that does not answer costs the run nothing but the link.

    Args:
        link: Address of the dashboard, which answers on the flow's machine alone; None links nothing.
        flow: Its name.
    """
    if link is None:
        return
    port, host = urlsplit(link).port, socket.gethostname()
    about = (
        "Dask's dashboard: workers, their tasks and memory, while the run lasts. It answers on "
        f"{host}; from elsewhere, after `ssh -N -L {port}:127.0.0.1:{port} {host}`."
    )
    try:
        create_link_artifact(link, "Dask dashboard", f"{flow.replace('_', '-')}-dashboard", about)
    except Exception as error:
        if not is_of_api(error):
            raise
        _log.warning("the Prefect UI lacks the link to Dask's dashboard: %s: %s", type(error).__name__, error)
