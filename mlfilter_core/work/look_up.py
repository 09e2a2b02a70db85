"""The files of a run, sorted by what is known of them before it: finished, refused, or to do."""

from array import array
from typing import Generic

from mlfilter_core.errors import FileError, OtherRequestError, OtherSettingsError
from mlfilter_core.work.finished_files import FinishedFiles
from mlfilter_core.work.stored_reports import StoredReports
from mlfilter_core.work.workload import Report, Workload


class LookUp(Generic[Report]):
    """What was found about the files of a workload so far.

    Attributes:
        reports: Reports of the finished files.
        failures: Reasons of the refused files, by name.
        to_do: Places of the files to do.
    """

    def __init__(self, workload: Workload[Report], finished: FinishedFiles[Report]) -> None:
        self.reports = StoredReports[Report]()
        self.failures: dict[str, str] = {}
        self.to_do = array("q")
        self._files = workload.files
        self._finished = finished
        self._others: dict[int, OtherRequestError] = {}

    def add(self, place: int) -> None:
        """Looks up the file at a place.

        Raises:
            OSError: It cannot be looked up; nothing is known of it.
        """
        file = self._files[place]
        try:
            report = self._finished.find(file)
        except OtherRequestError as error:
            self._others[place] = error
        except FileError as error:
            self.failures[file.relative] = str(error)
        else:
            if report is None:
                self.to_do.append(place)
            else:
                self.reports.add(place, report)

    @property
    def is_in_vain(self) -> bool:
        """Whether so many files have other settings that the rest need not be looked up."""
        return len(self._others) == OtherSettingsError.MOST_COUNTED

    def check(self) -> None:
        """Checks that the finished files have the settings of the job.

        Raises:
            OtherSettingsError: Some have others; describes the first.
        """
        if self._others:
            raise OtherSettingsError(len(self._others), len(self._files), self._others[min(self._others)])
