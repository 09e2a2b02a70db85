"""The number of open files of a run's process, which grows with its workers.

They are connections, and pipes of Dask's nannies.
"""

import resource

from mlfilter_core.errors import ConfigError

# Measured: 40 files, and for each worker 12 where its nanny is in this process, 4 where it is on another machine.
OF_A_RUN, OF_A_WORKER_HERE, OF_A_WORKER_ELSEWHERE = 64, 12, 6


def allow_open_files(n_workers: int, are_elsewhere: bool = False) -> None:
    """Raises this process's limit of open files to what a run needs; many systems begin with 1024.

    Args:
        n_workers: Number of workers at a time.
        are_elsewhere: Whether they run on other machines.

    Raises:
        ConfigError: The system allows fewer.
    """
    needed = OF_A_RUN + n_workers * (OF_A_WORKER_ELSEWHERE if are_elsewhere else OF_A_WORKER_HERE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError):
        field = "slurm_settings.workers" if are_elsewhere else "local_settings.workers"
        raise ConfigError(
            f"{field}: {n_workers} workers need {needed} open files, but ulimit -Hn allows {hard}; lower {field}, or "
            "have the limit raised"
        ) from None
