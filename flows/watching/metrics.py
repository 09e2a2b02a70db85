"""Serves the progress of a run to Prometheus."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flows.watching.run_progress import RunProgress
from mlfilter_core.errors import ConfigError

ALL_ADDRESSES = "0.0.0.0"  # Prometheus runs on another machine, and these figures are not secret


@contextmanager
def metrics_served(progress: RunProgress, flow: str, port: int | None) -> Iterator[None]:
    """Serves the metrics of a run at `http://<this machine>:<port>/metrics` in the block; None serves nothing.

    Raises:
        ConfigError: The port is taken.
    """
    if port is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(_RunCollector(progress, flow))
    try:
        server, thread = start_http_server(port, ALL_ADDRESSES, registry)
    except OSError as error:
        raise _taken(port, error) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def check_port(port: int | None) -> None:
    """Checks that a port is free.

    Raises:
        ConfigError: It is not.
    """
    if port is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ALL_ADDRESSES, port))
        except OSError as error:
            raise _taken(port, error) from error


class _RunCollector(Collector):
    """Reads the progress of a run whenever Prometheus asks."""

    def __init__(self, progress: RunProgress, flow: str) -> None:
        self._progress = progress
        self._flow = flow

    def collect(self) -> Iterator[Metric]:
        now = self._progress.snapshot()
        for name, about, value in (
            ("documents", "Documents done.", now.documents),
            ("tokens", "Tokens encoded.", now.tokens),
            ("rejected_lines", "Rejected lines.", now.rejected),
            ("out_of_memory", "Times that a batch did not fit in memory.", now.out_of_memory),
        ):
            yield self._of_flow(CounterMetricFamily(f"mlfilter_{name}", about, labels=["flow"]), value)
        files = GaugeMetricFamily("mlfilter_files", "Files of the run.", labels=["flow", "state"])
        n_ended = now.files_before + now.files_done + now.files_failed
        for state, n in (
            ("finished_before", now.files_before),
            ("finished", now.files_done),
            ("failed", now.files_failed),
            ("under_way", len(now.under_way)),
            ("waiting", now.files - n_ended - len(now.under_way)),
        ):
            files.add_metric([self._flow, state], n)
        yield files
        share = GaugeMetricFamily(
            "mlfilter_progress_ratio", "Processed share of the bytes of this run.", labels=["flow"]
        )
        yield self._of_flow(share, now.share)
        waits = CounterMetricFamily(
            "mlfilter_stage_wait_seconds", "Seconds that a stage waited for another.", labels=["flow", "stage"]
        )
        for stage, seconds in now.waited.items():
            waits.add_metric([self._flow, stage], seconds)
        yield waits
        budget = GaugeMetricFamily(
            "mlfilter_batch_budget_tokens", "Most tokens in one forward pass.", labels=["flow", "worker"]
        )
        memory = GaugeMetricFamily(
            "mlfilter_gpu_memory_bytes", "Memory of the GPU that PyTorch holds.", labels=["flow", "worker"]
        )
        for file in now.under_way:
            budget.add_metric([self._flow, file.worker], file.progress.max_batch_tokens)
            memory.add_metric([self._flow, file.worker], file.progress.gpu_memory_bytes)
        yield from (budget, memory)

    def _of_flow(self, metric: CounterMetricFamily | GaugeMetricFamily, value: float) -> Metric:
        metric.add_metric([self._flow], value)
        return metric


def _taken(port: int, error: OSError) -> ConfigError:
    return ConfigError(
        f"metrics_port: cannot listen on {port} ({error.strerror}); another run may use it: set another port"
    )
