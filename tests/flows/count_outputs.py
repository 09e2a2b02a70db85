"""The outputs of the kind of job in test_toy_kind.py.

The processes that verify files import this module; from that of the tests they would load torch and Prefect.
"""

from mlfilter_core.verification.discrepancies import FileCheck
from mlfilter_core.verification.output_kinds import Output, OutputKind, RelatedFiles, VerifyRequest
from mlfilter_core.verification.stated_facts import StatedFacts


def find_count(relative: str) -> Output | None:
    return Output(relative, relative.removesuffix(".count")) if relative.endswith(".count") else None


def read_count(relative: str, request: VerifyRequest) -> StatedFacts:
    path = request.output_dir / relative
    return StatedFacts(path.stat().st_size, int(path.read_text().split()[0]))


def check_count(relative: str, request: VerifyRequest, related: RelatedFiles) -> FileCheck:
    fields = (request.output_dir / relative).read_text().split()
    problems = () if len(fields) == 2 else (f"has {len(fields)} numbers instead of 2; count again",)
    return FileCheck(relative, problems)


COUNTS = OutputKind("counts", find_count, read_count, check_count)
