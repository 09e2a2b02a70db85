"""How many workers this machine runs for a job; knows nothing about Dask."""

import os
from pathlib import Path

from mlfilter_core.compute.cores import usable_cores
from mlfilter_core.compute.memory import usable_memory_bytes
from mlfilter_core.config.execution import LocalSettings

# Least memory for each worker of several: what a worker that annotates takes, and its share of the run's own.
WORKER_BYTES = 1 << 30


def visible_gpus() -> list[str]:
    """Returns the CUDA devices that this process may use, as in CUDA_VISIBLE_DEVICES; does not load torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip() not in ("", "-1")]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def most_workers(settings: LocalSettings, one_per_core: bool) -> int:
    """Returns the number of workers for any number of tasks.

    Args:
        settings: Local settings of the job file; `workers: -1` is the default.
        one_per_core: Whether the default is one worker per core, as far as memory reaches, or one per GPU (a single
            one without GPUs).
    """
    if settings.workers > 0:
        return settings.workers
    return one_per_usable_core() if one_per_core else max(1, len(visible_gpus()))


def one_per_usable_core() -> int:
    """Returns the number of usable cores, or of workers that the usable memory is enough for."""
    return min(usable_cores(), max(1, usable_memory_bytes() // WORKER_BYTES))
