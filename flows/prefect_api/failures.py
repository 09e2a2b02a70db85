"""Which failures Prefect sees as what: expected ones as a message, passing ones as worth another try."""

import errno
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect.client.schemas.objects import State
from prefect.states import Failed

from mlfilter_core.errors import MlfilterError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

RETRIES = 3
# Errors of the file system that stay: trying again would only hold a worker.
LASTING_ERRNOS = frozenset(
    (
        *(errno.ENOENT, errno.EEXIST, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR),
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG),
    )
)


def expected_errors_as_states(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Makes a flow or task end as Failed, with the error's message, where it raises an `MlfilterError`.

    Raised, it would fill terminal and logs with a traceback that tells the reader nothing. The caller of
    the flow still gets the exception.
    """

    @functools.wraps(function)
    def stated(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except MlfilterError as error:
            return Failed(message=str(error), data=error)  # type: ignore[return-value]

    return stated


def can_heal(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Tells Prefect whether a failed task is worth another try: only the file system's passing moods are."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError) and error.errno not in LASTING_ERRNOS
