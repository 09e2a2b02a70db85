"""Files of the Hugging Face hub, and what to do where they cannot be had."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Errors of a cache that cannot be written.
OF_CACHE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class HubError(Exception):
    """Files of the hub cannot be had. Its text says why, and what to do."""


def from_hub(download: Callable[..., Any], repository: str, *arguments: Any, **options: Any) -> Path:
    """Returns the path of files of the hub in the user's cache.

    Args:
        download: Function of the hub's client.
        repository: Its first argument.
        arguments: Its other arguments.
        options: Its keyword arguments.

    Raises:
        HubError: The files cannot be had.
    """
    try:
        return Path(download(repository, *arguments, **options))
    except Exception as error:  # the client's libraries for HTTP and for large files raise errors of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HubError(f"{reason}; {_cure(error, repository)}") from error


def _cure(error: Exception, repository: str) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if any(getattr(error, "errno", None) == code or os.strerror(code) in str(error) for code in OF_CACHE):
        return f"the cache {HF_HUB_CACHE} cannot be written: set HF_HOME to a folder that you can write, with room"
    if isinstance(error, HfHubHTTPError | HFValidationError):
        return "check the name and the revision, and log in for a private repository (hf auth login)"
    missing = f"it is not in the cache {HF_HUB_CACHE}: " if isinstance(error, LocalEntryNotFoundError) else ""
    return (
        f"{missing}check the name; without a network, run hf download {repository} elsewhere with HF_HOME in a folder "
        "that both machines share, or give a local folder"
    )
