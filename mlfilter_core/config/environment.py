"""The variables of the environment that `${oc.env:NAME}` in a job may read: no secrets.

All values of a job are written to logs, reports, outputs and the Prefect API, where others read them.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from omegaconf import OmegaConf
from omegaconf.resolvers import oc

from mlfilter_core.errors import ConfigError
from mlfilter_core.files.urls import masked

# Patterns of the variables that jobs may read, set by a site: `MLFILTER_* CORPUS`.
READABLE_VARIABLES = "MLFILTER_READABLE_VARIABLES"
# Words of names, whole or at the end of one: HF_TOKEN, APIKEY. Plurals are counts and lists: MAX_TOKENS.
SECRET_NAME = re.compile(
    r"(TOKEN|SECRETS?|PASSWORDS?|PASSWD|PASSPHRASE|KEY|CREDENTIALS?|CONNECTION_STRING"
    r"|(?<![A-Z])(PASS|AUTH|OAUTH|JWT|PAT|COOKIE|DSN)|(?<=_)PWD)(?![A-Z])",
    re.IGNORECASE,
)

_one_at_a_time = threading.Lock()  # the library's resolvers belong to the process


@contextmanager
def reading_no_secrets() -> Iterator[None]:
    """Makes `${oc.env:NAME}` raise a `ConfigError` for a variable that jobs may not read, during the block.

    The library wraps it in an `InterpolationResolutionError`, which names the field.
    """
    with _one_at_a_time:
        OmegaConf.register_resolver("oc.env", _value, replace=True)
        try:
            yield
        finally:
            OmegaConf.register_resolver("oc.env", oc.env, replace=True)


def check_readable(name: str) -> None:
    """Checks that jobs may read a variable of the environment, whether or not it is set.

    Raises:
        ConfigError: Its name or its value is that of a secret, or the site does not list it.
    """
    patterns = os.environ.get(READABLE_VARIABLES)
    if patterns is not None:
        if not any(fnmatchcase(name, pattern) for pattern in re.split(r"[\s,]+", patterns)):
            raise ConfigError(f'jobs may not read the variable {name} here; {READABLE_VARIABLES} is "{patterns}"')
        return
    value = os.environ.get(name, "")
    if SECRET_NAME.search(name) or masked(value) != value:
        raise ConfigError(
            f"the variable {name} looks like a secret, and values of a job are written to logs, reports and outputs. "
            "Leave it out: Hugging Face, stores and Prefect read their variables themselves. If it is no secret, give "
            "it another name"
        )


def _value(name: Any, *default: Any) -> Any:
    check_readable(str(name))
    if str(name) not in os.environ and not default:
        raise ConfigError(f"the variable {name} is not set; set it, or give a default, as in ${{oc.env:{name},value}}")
    return oc.env(str(name), *default)
