"""How many cores this process may use."""

import math
import os

from mlfilter_core.compute.cgroups import core_limit


def usable_cores() -> int:
    """Returns how many cores this process may use, within its CPU affinity and its control groups.

    A limit of 1.5 cores counts as two: as one, a third of them would stay idle.
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    n_cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, min(n_cores, math.ceil(core_limit() or n_cores)))
