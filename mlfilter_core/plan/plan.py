"""What a job would do and need, as facts for programs, and in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Section:
    """Facts that belong together.

    Attributes:
        name: Of the section, in JSON.
        facts: As JSON has them.
        lines: Titles, and what a person reads beside them; of several lines, where it says so.
    """

    name: str
    facts: Mapping[str, Any]
    lines: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Plan:
    """What a job would do and need.

    Attributes:
        flow: Of the job.
        sections: In reading order; those that could not be found out are absent.
        problems: What would fail; each says what, where, and how to fix it.
        warnings: What would not, and a person should know.
        recommended: What `slurm_settings` should be, as YAML that can be pasted; empty where nothing is known.
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
        n: At a time, at most.
        n_per_job: In a Slurm job.
        n_cores: Of each.
        has_gpu: Whether each has a GPU of its own.
        are_elsewhere: Whether they are on other machines than this.
        words: What they are, as `4 workers on this machine`.
        given: The `slurm_settings` that were given, if any.
        overruled: Those of them that `sbatch_args` overrules.
    """

    n: int
    n_per_job: int
    n_cores: int
    has_gpu: bool
    are_elsewhere: bool
    words: str
    given: Mapping[str, Any] = field(default_factory=dict)
    overruled: Sequence[str] = ()
