"""Checkpoints of heads in stores, staged before a run, as every worker reads them."""

from pathlib import PurePosixPath
from typing import Any

from mlfilter_core.config.annotation import Scoring
from mlfilter_core.config.execution import AnyJob
from mlfilter_core.errors import HeadError, SourceError
from mlfilter_core.files.stores import StoreFolder
from mlfilter_core.files.urls import url_of
from mlfilter_core.heads.checkpoint_files import SIDECAR_SUFFIX


def with_staged_heads(job: AnyJob) -> AnyJob:
    """Returns the job on this machine, with staged files in place of the URLs of heads.

    Raises:
        HeadError: A checkpoint does not exist.
        StoreError: A store refuses the access.
        OSError: A store does not answer.
    """
    here = job.on_this_machine()
    params: Any = here.params
    scoring = params if isinstance(params, Scoring) else params.annotate_inline
    if scoring is None:
        return here
    checkpoints = {
        name: str(checkpoint) if (url := url_of(checkpoint)) is None else _staged(name, url, job)
        for name, checkpoint in scoring.regression_head_checkpoints.items()
    }
    if checkpoints == scoring.regression_head_checkpoints:
        return here
    scoring = scoring.model_copy(update={"regression_head_checkpoints": checkpoints})
    params = scoring if isinstance(params, Scoring) else params.model_copy(update={"annotate_inline": scoring})
    return here.model_copy(update={"params": params})


def _staged(name: str, url: str, job: AnyJob) -> str:
    """Returns the path of a staged checkpoint: a file, with its sidecar if it has one, or a folder."""
    folder, _, last = url.rpartition("/")
    store = StoreFolder(folder, job.staging / "heads" / name)
    try:
        if (stored := store.find(last)) is not None:
            store.stage(last, stored)
            if (sidecar := store.find(f"{last}{SIDECAR_SUFFIX}")) is not None:
                store.stage(f"{last}{SIDECAR_SUFFIX}", sidecar)
            return str(store.mirror / last)
        store = StoreFolder(url, store.mirror / last)
        files = store.listing().files
        for relative, listed in files.items():
            if PurePosixPath(relative).name == relative:  # weights and configuration lie at the top
                store.stage(relative, listed)
    except SourceError as error:
        raise HeadError(f"head {name}: {error}") from error
    if not files:
        raise HeadError(f"head {name}: the checkpoint {url} does not exist; fix the URL")
    return str(store.mirror)
