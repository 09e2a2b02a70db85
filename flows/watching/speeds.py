"""The speed of each file in progress, and which files are far slower than the others.

Knows nothing about what is done with a slow one.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from mlfilter_core.work.progress import Progress

# Speeds of the first minute say little: an encoder may be compiled or tuned, and a resumed file skips what it has.
GRACE_S = 60.0
# Speeds are those of the last minute. Batches and commits take seconds.
WINDOW_S = 60.0
# A file that ended sooner says nothing about its worker.
MIN_SPAN_S = 5.0
# Far slower. Files of one corpus differ by up to a factor of two in tokens per second, for their documents' length.
FACTOR = 3
# Fewer others may be the ones that are unusual.
MIN_OTHERS = 2
# The last files speak for the run as it is now. Arbitrary.
N_ENDED = 100
# From here on, a file is checked and published, which counts no documents, or is finished before others of its task.
ALMOST_DONE = 0.98


@dataclass(frozen=True)
class Straggler:
    """A file whose worker is far slower than the others.

    Attributes:
        worker: Name of the worker.
        progress: Progress of the file.
        unit: What is counted: `tokens`, or `documents` where there are no tokens.
        speed: Units per second over the last minute.
        others: Median of the speeds of other files.
    """

    worker: str
    progress: Progress
    unit: str
    speed: float
    others: float

    @property
    def left_s(self) -> float:
        """Seconds until the end of the file at this speed."""
        return (1 - self.progress.share) * self._all / self.speed if self.speed else float("inf")

    @property
    def left_elsewhere_s(self) -> float:
        """Seconds from the file's last commit to its end at the speed of the others."""
        progress = self.progress
        committed = _count(progress) * min(1.0, progress.committed / max(1, progress.documents))
        return (self._all - committed) / self.others

    @property
    def _all(self) -> float:
        return _count(self.progress) / max(1e-9, self.progress.share)


@dataclass
class _Course:
    """What a worker has told about a file.

    Attributes:
        worker: Name of the worker.
        began: When it first told something.
        last: The latest progress.
        samples: Times and counts of the last minute, and one before.
    """

    worker: str
    began: float
    last: Progress
    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, now: float, progress: Progress) -> None:
        self.last = progress
        self.samples.append((now, _count(progress)))
        while len(self.samples) > 2 and now - self.samples[1][0] > WINDOW_S:
            self.samples.popleft()

    def speed(self, now: float) -> float:
        (began, before), (_, after) = self.samples[0], self.samples[-1]
        return (after - before) / max(1e-9, now - began)


class Speeds:
    """Compares files in progress with each other, and with those that have ended."""

    def __init__(self) -> None:
        self._courses: dict[str, _Course] = {}
        self._ended: dict[str, deque[float]] = {}

    def hear(self, worker: str, progress: Progress, now: float) -> None:
        """Takes the progress of a file."""
        course = self._courses.get(progress.file)
        if course is None or course.worker != worker or _count(progress) < _count(course.last):
            course = self._courses[progress.file] = _Course(worker, now, progress)
        course.add(now, progress)

    def end(self, file: str) -> None:
        """Takes the end of a file."""
        course = self._courses.pop(file, None)
        if course is not None and (ended := course.samples[-1][0]) - course.samples[0][0] >= MIN_SPAN_S:
            self._ended.setdefault(_unit(course.last), deque(maxlen=N_ENDED)).append(course.speed(ended))

    def stragglers(self, now: float) -> Sequence[Straggler]:
        """Returns the files that are far slower than the others, the slowest first."""
        courses = {
            file: each
            for file, each in self._courses.items()
            if now - each.began >= GRACE_S + WINDOW_S and each.last.share <= ALMOST_DONE
        }
        known = {file: course.speed(now) for file, course in courses.items()}
        found = []
        for file, speed in known.items():
            course, unit = courses[file], _unit(courses[file].last)
            now_others = [known[other] for other in known if other != file and _unit(courses[other].last) == unit]
            others = [*self._ended.get(unit, ()), *now_others]
            if len(others) < MIN_OTHERS:
                continue
            # Where all files are slow now, as while a file system does not answer, no worker is to blame.
            usual = min(median(others), median(now_others or others))
            if speed * FACTOR < usual:
                found.append(Straggler(course.worker, course.last, unit, speed, usual))
        return sorted(found, key=lambda straggler: straggler.speed / straggler.others)


def _count(progress: Progress) -> int:
    return progress.tokens or progress.documents


def _unit(progress: Progress) -> str:
    return "tokens" if progress.tokens else "documents"
