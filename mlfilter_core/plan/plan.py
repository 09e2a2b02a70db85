"""What a job would do and need: facts for programs, and lines for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Section:
    """A section of a plan: facts that belong together.

    Attributes:
        name: Name of the section in JSON.
        facts: The facts, as JSON has them.
        lines: Titles, each with the text beside it; an empty title continues the line above.
    """

    name: str
    facts: Mapping[str, Any]
    lines: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Plan:
    """What a job would do and need.

    Attributes:
        flow: Flow of the job.
        sections: Sections in reading order, without those that could not be found out.
        problems: Problems that would fail the job; each says what, where, and how to fix it.
        warnings: Other facts that a person should know.
        recommended: Recommended `slurm_settings`, as YAML to paste; empty where nothing was measured.
    """

    flow: str
    sections: Sequence[Section]
    problems: Sequence[str]
    warnings: Sequence[str]
    recommended: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns all the facts."""
        return {
            "flow": self.flow,
            "problems": list(self.problems),
            "warnings": list(self.warnings),
            **{section.name: dict(section.facts) for section in self.sections},
        }


@dataclass(frozen=True)
class PlannedWorkers:
    """The workers that a job asks for.

    Attributes:
        n: Largest number of workers at a time.
        n_per_job: Workers in one Slurm job.
        n_cores: Cores of one worker.
        has_gpu: Whether each worker has its own GPU.
        are_elsewhere: Whether the workers run on other machines than this one.
        words: The workers as text: `4 workers on this machine`.
        given: The `slurm_settings` of the job file.
        overruled: Fields of `slurm_settings` that `sbatch_args` overrides.
    """

    n: int
    n_per_job: int
    n_cores: int
    has_gpu: bool
    are_elsewhere: bool
    words: str
    given: Mapping[str, Any] = field(default_factory=dict)
    overruled: Sequence[str] = ()
