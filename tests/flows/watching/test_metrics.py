import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.watching.metrics import check_port, metrics_served
from flows.watching.run_progress import RunProgress
from mlfilter_core.errors import ConfigError
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work.division import Tasks
from mlfilter_core.work.progress import Progress
from tests.flows.watching.reports import report


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = int(free.getsockname()[1])
    yield number


def read(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_prometheus_reads_how_far_the_run_is(tmp_path: Path, port: int) -> None:
    progress = RunProgress(5, Tasks([TaskFile(f"{name}.jsonl", name, tmp_path) for name in "abc"]), n_failed=1)
    with metrics_served(progress, "embed", port):
        assert read(port)['mlfilter_documents_total{flow="embed"}'] == 0
        progress.finish("a.jsonl", report("a.jsonl"))
        progress.hear("w1", Progress("b.jsonl", 4, 40, share=0.5, max_batch_tokens=2048, gpu_memory_bytes=1 << 30))
        metrics = read(port)
    expected = {
        'mlfilter_documents_total{flow="embed"}': 14,
        'mlfilter_tokens_total{flow="embed"}': 140,
        'mlfilter_rejected_lines_total{flow="embed"}': 1,
        'mlfilter_out_of_memory_total{flow="embed"}': 2,
        'mlfilter_files{flow="embed",state="finished_before"}': 1,
        'mlfilter_files{flow="embed",state="finished"}': 1,
        'mlfilter_files{flow="embed",state="failed"}': 1,
        'mlfilter_files{flow="embed",state="under_way"}': 1,
        'mlfilter_files{flow="embed",state="waiting"}': 1,
        'mlfilter_progress_ratio{flow="embed"}': 0.5,
        'mlfilter_stage_wait_seconds_total{flow="embed",stage="encoding"}': 1,
        'mlfilter_stage_wait_seconds_total{flow="embed",stage="reading"}': 5,
        'mlfilter_batch_budget_tokens{flow="embed",worker="w1"}': 2048,
        'mlfilter_gpu_memory_bytes{flow="embed",worker="w1"}': 1 << 30,
    }
    assert metrics == expected
    with pytest.raises(OSError, match="refused"):
        read(port)
    check_port(port)


def test_a_port_that_is_taken_is_said_before_the_run(port: int) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", port))
        other.listen()
        for use in (
            lambda: check_port(port),
            lambda: metrics_served(RunProgress(0, Tasks([]), 0), "embed", port).__enter__(),
        ):
            with pytest.raises(ConfigError, match=rf"metrics_port: cannot listen on {port} \(Address already in use"):
                use()


def test_without_a_port_nothing_is_served() -> None:
    check_port(None)
    with metrics_served(RunProgress(0, Tasks([]), 0), "embed", None):
        pass
