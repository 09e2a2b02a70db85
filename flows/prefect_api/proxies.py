"""Keeps requests to this machine away from the proxies that the environment names.

Sites set `http_proxy` for all their users, often without `no_proxy`. Prefect's client would then ask the proxy for the
server on loopback.
"""

import importlib.util
import os
import re
import socket
import sys

PROXIES = ("http_proxy", "https_proxy", "all_proxy")
NO_PROXY = ("no_proxy", "NO_PROXY")
HERE = ("127.0.0.1", "localhost", "::1")


def reach_this_machine_directly() -> None:
    """Adds this machine to `no_proxy`, and drops SOCKS proxies that cannot be used; in this process and its children.

    Call it before anything makes a client: httpx raises ImportError for a SOCKS proxy without the package socksio, even
    for hosts that need no proxy.
    """
    names = [name for proxy in PROXIES for name in (proxy, proxy.upper()) if os.environ.get(name)]
    if not names:
        return
    own = [host for name in NO_PROXY for host in os.environ.get(name, "").split(",") if host.strip()]
    direct = ",".join(dict.fromkeys([*own, *HERE, socket.gethostname()]))
    os.environ.update(dict.fromkeys(NO_PROXY, direct))
    if importlib.util.find_spec("socksio") is not None:
        return
    for name in names:
        if os.environ[name].startswith("socks"):
            print(
                f"warning: {name}={_without_password(os.environ[name])} is ignored, since the package socksio is "
                "missing; pip install socksio, if models are to be downloaded through it",
                file=sys.stderr,
            )
            del os.environ[name]


def _without_password(proxy: str) -> str:
    return re.sub(r"//.*@", "//", proxy)
