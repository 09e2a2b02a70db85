import logging
from pathlib import Path

import pytest

from flows.workers import worker_count
from flows.workers.local import local_workers
from flows.workers.worker_count import WORKER_BYTES, most_workers
from mlfilter_core.compute.cores import usable_cores
from mlfilter_core.config.execution import LocalSettings
from tests.machines import control_group


def test_a_worker_for_each_core_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_count, "usable_memory_bytes", lambda: 1 << 50)
    assert most_workers(LocalSettings(), one_per_core=True) == usable_cores()


def test_no_more_workers_than_the_memory_of_a_container_is_for() -> None:
    code = (
        "from flows.workers.worker_count import most_workers; import flows.workers.worker_count as count;"
        "from mlfilter_core.config.execution import LocalSettings; count.usable_cores = lambda: 64;"
        "print(most_workers(LocalSettings(), True), most_workers(LocalSettings(workers=7), True))"
    )
    with control_group("memory") as group:
        group.limit_memory(3 * WORKER_BYTES)
        assert group.python(code) == "3 7\n"
        group.limit_memory(WORKER_BYTES // 2)
        assert group.python(code) == "1 7\n"


def test_a_run_says_that_memory_keeps_it_from_using_all_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, spawned_workers: None
) -> None:
    for module in ("worker_count", "local"):
        monkeypatch.setattr(f"flows.workers.{module}.usable_memory_bytes", lambda: WORKER_BYTES)
        monkeypatch.setattr(f"flows.workers.{module}.usable_cores", lambda: 8)
    with (
        caplog.at_level(logging.WARNING, "flows.workers.local"),
        local_workers(LocalSettings(), one_per_core=True, device="cpu", n_tasks=3, logs=tmp_path) as workers,
    ):
        assert workers.n_workers == 1
    said = "1 worker on 8 cores, since 1.07 GB of memory can be used here; local_settings.workers can ask for more"
    assert said in caplog.messages
