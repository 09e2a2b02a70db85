"""A kind of job from another package: its outputs are `toys/**/*.toy`, which contain the word `toy`."""

from collections.abc import Mapping

import pytest

from mlfilter_core import job_kinds
from mlfilter_core.config.execution import Job
from mlfilter_core.job_kinds import JobKind, kinds, register
from mlfilter_core.run_report.facts import OutputFacts
from mlfilter_core.verification.discrepancies import FileCheck
from mlfilter_core.verification.output_kinds import Output, OutputKind, RelatedFiles, VerifyRequest, without_suffix
from mlfilter_core.verification.stated_facts import StatedFacts


class ToyJob(Job):
    """Plays."""


def find_toy(relative: str) -> Output | None:
    folder, _, name = relative.partition("/")
    return Output(relative, without_suffix(name, (".toy",))) if folder == "toys" and name.endswith(".toy") else None


def read_toy(relative: str, request: VerifyRequest) -> StatedFacts:
    content = (request.output_dir / relative).read_bytes()
    return StatedFacts(len(content), len(content.splitlines()))


def check_toy(relative: str, request: VerifyRequest, related: RelatedFiles) -> FileCheck:
    content = (request.output_dir / relative).read_text()
    problems = () if "toy" in content else (f"is no toy, and lies beside {', '.join(related.outputs)}; play again",)
    return FileCheck(relative, problems, n_bytes=len(content))


def pictures_of_toys(facts: OutputFacts) -> Mapping[str, str]:
    return {"Toys": f'<svg viewBox="0 0 {len(facts.files)} 1"></svg>'}


TOYS = OutputKind("toys", find_toy, read_toy, check_toy)


def register_toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds the kind to the table for one test."""
    monkeypatch.setattr(job_kinds, "_kinds", list(kinds()))
    register(
        JobKind(
            flow="play",
            field="toys",
            config=ToyJob,
            summary="Play.",
            run="",
            workload="",
            outputs=f"{__name__}:TOYS",
            pictures=f"{__name__}:pictures_of_toys",
        )
    )
