import pytest

from mlfilter_core.plan import resources
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.plan import PlannedWorkers
from mlfilter_core.plan.resources import check_memory
from mlfilter_core.plan.worker_memory import WorkerMemory


@pytest.mark.parametrize(
    ("n_workers", "are_elsewhere", "warnings"),
    [
        (4, False, []),
        (
            5,
            False,
            [
                "5 workers here may need up to 5 GB of memory, and 4 GB can be used here; lower "
                "params.max_line_bytes or local_settings.workers"
            ],
        ),
        (5, True, []),
    ],
)
def test_a_plan_warns_of_workers_that_may_need_more_memory_than_there_is(
    n_workers: int, are_elsewhere: bool, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "usable_memory_bytes", lambda: 4 * 10**9)
    workers = PlannedWorkers(n_workers, 1, 1, False, are_elsewhere, f"{n_workers} workers here")
    findings = Findings()
    check_memory(WorkerMemory(10**9, ""), workers, findings, "params.max_line_bytes", "local_settings.workers")
    assert findings.warnings == warnings
