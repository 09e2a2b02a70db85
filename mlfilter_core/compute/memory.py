"""How much memory this process and those that it starts may use together."""

import os

from mlfilter_core.compute.cgroups import memory_limit


def usable_memory_bytes() -> int:
    """Returns the memory of this machine, or less where control groups give less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(machine, memory_limit() or machine)
