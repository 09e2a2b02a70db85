"""What is wrong with a job, all of it at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlfilter_core.errors import MlfilterError, in_one_line


class Findings:
    """Collects what would fail, and what a person should know.

    Attributes:
        problems: What would fail; each says what, where, and how to fix it.
        warnings: What would not.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def add_problem(self, problem: str) -> None:
        """Takes what would fail, unless it is known."""
        if problem not in self.problems:
            self.problems.append(problem)

    def add_warning(self, warning: str) -> None:
        """Takes what a person should know, unless it is known."""
        if warning not in self.warnings:
            self.warnings.append(warning)

    @contextmanager
    def noting(self, what: str = "", how: str = "") -> Iterator[None]:
        """Makes an expected error of the block a problem, and goes on after the block.

        Args:
            what: Before the system's own reason, where an OSError does not say what was tried.
            how: After it: how to mend it.
        """
        try:
            yield
        except MlfilterError as error:
            self.add_problem(str(error))
        except OSError as error:
            reason = f"{what} ({error.strerror})" if what and error.strerror else in_one_line(error)
            self.add_problem(f"{reason}; {how}" if how else reason)
