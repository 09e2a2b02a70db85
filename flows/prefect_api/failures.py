"""How Prefect treats failures: expected ones become a message, temporary ones are retried."""

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
# Errors of the file system that last: a retry would only occupy a worker.
LASTING_ERRNOS = frozenset(
    (
        *(errno.ENOENT, errno.EEXIST, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR),
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG),
    )
)


def expected_errors_as_states(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Makes a flow or task end as Failed, with the error's message, when it raises an `MlfilterError`.

    A raised error would print a useless traceback on the terminal and in the logs. The caller of the flow still gets
    the exception.
    """

    @functools.wraps(function)
    def stated(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except MlfilterError as error:
            return Failed(message=str(error), data=error)  # type: ignore[return-value]

    return stated


def can_heal(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Returns whether Prefect should retry a failed task: only after a temporary error of the file system."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError) and error.errno not in LASTING_ERRNOS
