"""Everything that is wrong with a job, collected instead of stopping at the first error."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlfilter_core.errors import MlfilterError, in_one_line


class Findings:
    """Collects problems and warnings, each once.

    Attributes:
        problems: Problems that would fail the job; each says what, where, and how to fix it.
        warnings: Other facts that a person should know.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def add_problem(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def add_warning(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)

    @contextmanager
    def noting(self, what: str = "", how: str = "") -> Iterator[None]:
        """Turns an expected error within the block into a problem; execution continues after the block.

        Args:
            what: Text before the reason of an OSError: the attempt that failed.
            how: Fix for the message.
        """
        try:
            yield
        except MlfilterError as error:
            self.add_problem(str(error))
        except OSError as error:
            reason = f"{what} ({error.strerror})" if what and error.strerror else in_one_line(error)
            self.add_problem(f"{reason}; {how}" if how else reason)
