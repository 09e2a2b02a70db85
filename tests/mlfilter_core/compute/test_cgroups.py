import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlfilter_core.compute.cgroups import PROCESS, core_limit, memory_limit
from tests.machines import ControlGroup, control_group

GIB = 1 << 30


class Layout:
    """Files of control groups as the kernel lays them out, with a process in one of the groups."""

    def __init__(self, folder: Path) -> None:
        self.process = folder / "proc"
        self.process.mkdir()
        self._mounted = folder / "sys fs"
        self._groups: list[str] = []
        self._mounts = ["23 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw"]

    def mount(self, kind: str, place: str, options: str, root: str = "/") -> None:
        point = str(self._mounted / place).replace(" ", "\\040")
        self._mounts.append(f"31 23 0:28 {root} {point} rw,nosuid shared:4 - {kind} {kind} {options}")
        self._write()

    def join(self, line: str) -> None:
        self._groups.append(line)
        self._write()

    def set(self, file: str, value: str) -> None:
        path = self._mounted / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")

    def limits(self) -> tuple[float | None, int | None]:
        return core_limit(self.process), memory_limit(self.process)

    def _write(self) -> None:
        (self.process / "cgroup").write_text("".join(f"{line}\n" for line in self._groups))
        (self.process / "mountinfo").write_text("".join(f"{line}\n" for line in self._mounts))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def test_version_2_in_a_container_of_its_own(layout: Layout) -> None:
    layout.mount("cgroup2", "cgroup", "rw,nsdelegate")
    layout.join("0::/")
    assert layout.limits() == (None, None)
    layout.set("cgroup/cpu.max", "150000 100000")
    layout.set("cgroup/memory.max", str(2 * GIB))
    assert layout.limits() == (1.5, 2 * GIB)


def test_the_lowest_limit_of_a_group_and_of_those_above_it_holds(layout: Layout) -> None:
    """As systemd limits a user of a login node: CPUQuota and MemoryHigh of user-1000.slice."""
    layout.mount("cgroup2", "cgroup", "rw")
    layout.join("0::/user.slice/user-1000.slice/session-4.scope")
    layout.set("cgroup/user.slice/cpu.max", "max 100000")
    layout.set("cgroup/user.slice/memory.max", str(64 * GIB))
    layout.set("cgroup/user.slice/user-1000.slice/cpu.max", "400000 100000")
    layout.set("cgroup/user.slice/user-1000.slice/memory.max", str(32 * GIB))
    layout.set("cgroup/user.slice/user-1000.slice/memory.high", str(8 * GIB))
    layout.set("cgroup/user.slice/user-1000.slice/session-4.scope/cpu.max", "max 100000")
    layout.set("cgroup/user.slice/user-1000.slice/session-4.scope/memory.max", "max")
    layout.set("cgroup/user.slice/user-1001.slice/memory.max", "1024")
    assert layout.limits() == (4.0, 8 * GIB)


def test_version_1(layout: Layout) -> None:
    """As Slurm's cgroup plugin limits a job, beside an empty hierarchy of version 2."""
    layout.mount("cgroup", "cgroup/cpu,cpuacct", "rw,cpu,cpuacct")
    layout.mount("cgroup", "cgroup/cpuset", "rw,cpuset")
    layout.mount("cgroup", "cgroup/memory", "rw,memory")
    layout.mount("cgroup2", "cgroup/unified", "rw")
    job = "slurm/uid_1000/job_7"
    for line in (f"4:memory:/{job}/step_0", f"3:cpuset:/{job}", f"2:cpu,cpuacct:/{job}", "0::/"):
        layout.join(line)
    layout.set(f"cgroup/cpu,cpuacct/{job}/cpu.cfs_quota_us", "-1")
    layout.set(f"cgroup/cpu,cpuacct/{job}/cpu.cfs_period_us", "100000")
    layout.set(f"cgroup/memory/{job}/memory.limit_in_bytes", str(8 * GIB))
    layout.set(f"cgroup/memory/{job}/step_0/memory.limit_in_bytes", "9223372036854771712")
    assert layout.limits() == (None, 8 * GIB)
    layout.set(f"cgroup/cpu,cpuacct/{job}/cpu.cfs_quota_us", "250000")
    assert layout.limits() == (2.5, 8 * GIB)


@pytest.mark.parametrize("root", ["/docker/4f5c", "/../.."])
def test_a_container_sees_its_group_at_the_mount(layout: Layout, root: str) -> None:
    """Docker mounts a container's own group; the path in /proc may be the host's."""
    layout.mount("cgroup", "cgroup/memory", "rw,memory", root)
    layout.join("4:memory:/docker/4f5c")
    layout.set("cgroup/memory/memory.limit_in_bytes", str(GIB))
    assert layout.limits() == (None, GIB)


def test_a_system_without_groups_has_no_limits(tmp_path: Path) -> None:
    assert core_limit(tmp_path) is None
    assert memory_limit(tmp_path) is None


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[ControlGroup]:
    """A real control group with a controller, where this user can make one."""
    with control_group(request.param) as made:
        yield made


@pytest.mark.parametrize("group", ["cpu"], indirect=True)
@pytest.mark.parametrize(("n_cores", "counted"), [(0.5, 1), (1, 1), (1.5, 2)])
def test_a_real_group_limits_the_cores(group: ControlGroup, n_cores: float, counted: int) -> None:
    group.limit_cores(n_cores)
    code = "from mlfilter_core.compute.cores import usable_cores; print(usable_cores())"
    assert group.python(code) == f"{min(counted, os.cpu_count() or 1)}\n"


@pytest.mark.parametrize("group", ["memory"], indirect=True)
def test_a_real_group_limits_the_memory(group: ControlGroup) -> None:
    group.limit_memory(GIB)
    code = "from mlfilter_core.compute.memory import usable_memory_bytes; print(usable_memory_bytes())"
    assert group.python(code) == f"{GIB}\n"


def test_the_limits_of_this_process_are_none_or_positive() -> None:
    assert PROCESS.exists() or (core_limit(), memory_limit()) == (None, None)
    assert (core_limit() or 1) > 0
    assert (memory_limit() or 1) > 0
