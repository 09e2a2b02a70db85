"""Shows progress in the Prefect UI."""

import logging
from typing import Any
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.watching.run_progress import Snapshot, describe
from mlfilter_core.work.progress import Progress

_log = logging.getLogger(__name__)


class ProgressArtifact:
    """A progress bar in the UI, created by its first update, for the flow run or task run that makes it.

    If the API does not answer, a warning is logged and the bar is no longer updated.
    """

    def __init__(self, key: str | None) -> None:
        """Takes the key under which the UI lists the bar with those of other runs, lower-case with dashes.

        With None, the UI lists it with its run only.
        """
        self._key = key
        self._id: UUID | None = None
        self._is_lost = False

    def show(self, snapshot: Snapshot) -> None:
        """Shows the progress of the run."""
        self._show(snapshot.share, describe(snapshot))

    def show_file(self, progress: Progress) -> None:
        """Shows the progress of a file."""
        self._show(progress.share, f"{progress.file}: {progress.documents:,} documents")

    def end(self, name: str) -> None:
        """Shows that a file or several, by the name of the last, are finished; does nothing if nothing was shown."""
        if self._id is not None:
            self._show(1.0, f"{name}: finished")

    def _show(self, share: float, description: str) -> None:
        if self._is_lost:
            return
        percent = round(100 * share, 1)
        try:
            if self._id is None:
                created: Any = create_progress_artifact(percent, self._key, description)
                self._id = created
            else:
                update_progress_artifact(self._id, percent, description)
        except HTTPError as error:
            self._is_lost = True
            _log.warning("the Prefect UI shows no further progress: %s: %s", type(error).__name__, error)
