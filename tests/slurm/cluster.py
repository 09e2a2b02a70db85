"""A real Slurm on this machine for tests, from Debian 12's packages; all its files are in one folder.

    eval "$(python tests/slurm/cluster.py up)"
    sbatch --gres=gpu:2 --wrap "env | grep CUDA"
    python tests/slurm/cluster.py down

A node claims 8 CPUs, 70 GB of memory and two GPUs. There are three partitions: `cpu`, `gpu`, and `closed`, where jobs
stay pending.
"""

import argparse
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

DEFAULT_FOLDER = Path("/run/mlfilter-slurm")
FOLDER_VARIABLE = "MLFILTER_SLURM_FOLDER"

PACKAGES = {
    "munged": "munge",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sinfo": "slurm-wlm",
    "squeue": "slurm-wlm",
    "scancel": "slurm-wlm",
}
DAEMONS = ("slurmctld", "slurmd", "munged")  # in the order in which they are stopped

WORKING_STATES = {"idle", "mixed", "allocated", "completing", "planned"}

START_SECONDS = 30.0
STOP_SECONDS = 15.0  # longer than KillWait
COMMAND_SECONDS = 10.0
N_TAIL_LINES = 8

SLURM_CONF = """\
ClusterName=mlfilter
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/slurmctld
SlurmdSpoolDir={folder}/slurmd/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
MailProg=/bin/true

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=5
MinJobAge=300
InactiveLimit=0
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1

# More than the machine has; without config_overrides the node would be drained for it.
SlurmdParameters=config_overrides
GresTypes=gpu
{nodes}
PartitionName=cpu Nodes=ALL Default=YES MaxTime=UNLIMITED State=UP
PartitionName=gpu Nodes=ALL MaxTime=UNLIMITED State=UP
PartitionName=closed Nodes=ALL MaxTime=UNLIMITED State=DOWN
"""

NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=70000 Gres=gpu:2"

# Devices that every machine has; nobody opens them.
GRES_CONF = """\
AutoDetect=off
Name=gpu File=/dev/null Flags=nvidia_gpu_env
Name=gpu File=/dev/zero Flags=nvidia_gpu_env
"""


class ClusterError(Exception):
    """The cluster does not start or stop."""


def available() -> str | None:
    """Returns why the cluster cannot run on this machine, or None if it can."""
    missing = [program for program in PACKAGES if _which(program) is None]
    if missing:
        packages = sorted({PACKAGES[program] for program in missing})
        return f"{', '.join(missing)} missing: apt-get install {' '.join(packages)}"
    if os.geteuid() != 0:
        return "Slurm's daemons must be started as root"
    return None


def answers(folder: Path) -> bool:
    """Returns whether the folder's cluster is up and takes jobs."""
    folder = folder.resolve()
    if not all(_processes(folder, daemon) for daemon in DAEMONS):
        return False  # clients would retry for many seconds
    states = _ask(folder, "sinfo", "--noheader", "--partition=cpu", "--format=%T").split()
    # "-": a waiting job has been promised the node
    return bool(states) and all(state.rstrip("-") in WORKING_STATES for state in states)


def node_names(n_nodes: int) -> list[str]:
    """Returns the names of the nodes of a cluster."""
    host = socket.gethostname().split(".")[0]  # slurmd's own name for its node
    return [host, *(f"{host}-{number}" for number in range(2, n_nodes + 1))]


def up(folder: Path, n_nodes: int = 1) -> dict[str, str]:
    """Starts the cluster unless it answers already.

    A broken cluster (a daemon is gone, the node is drained) is restarted, and its jobs end.

    Args:
        folder: Folder of all its files. munged requires that every user can enter the folders above, and that only
            root can write to them, unless they are sticky. The path has no spaces and at most 70 characters, because
            contains sockets.
        n_nodes: Number of nodes, if it is not up already.

    Returns:
        Environment variables with which Slurm's clients find the cluster.

    Raises:
        ClusterError: It cannot run here or does not start.
    """
    reason = available()
    if reason:
        raise ClusterError(reason)
    folder = folder.resolve()
    if not answers(folder):
        down(folder)
        _write_files(folder, n_nodes)
        try:
            _start(folder, n_nodes)
        except ClusterError:
            _stop_daemons(folder)
            raise
    return _environment(folder)


def down(folder: Path) -> None:
    """Cancels all jobs and stops the folder's cluster, if it runs; keeps the logs.

    If the daemons have died, only the next `up` can end their jobs.

    Raises:
        ClusterError: A daemon does not end.
    """
    folder = folder.resolve()
    if all(_processes(folder, daemon) for daemon in DAEMONS):
        _cancel_jobs(folder)
    _stop_daemons(folder)


def _which(program: str) -> str | None:
    # The daemons are on the PATH of root's login shells only.
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _environment(folder: Path) -> dict[str, str]:
    return {"SLURM_CONF": str(folder / "slurm.conf")}


def _write_files(folder: Path, n_nodes: int) -> None:
    for name in ("", "log", "slurmctld", "slurmd", "munge"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name).chmod(
            0o755
        )  # independent of the umask: other users' clients read them, and munged accepts no wider rights
    shutil.chown(folder / "munge", "munge", "munge")
    for log in (folder / "log").iterdir():
        log.unlink()
    key = folder / "munge/key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))
    shutil.chown(key, "munge", "munge")
    names = node_names(n_nodes)
    controller_port, *ports = _free_ports(1 + n_nodes)
    nodes = [NODE.format(name=name, host=names[0], port=port) for name, port in zip(names, ports, strict=True)]
    (folder / "slurm.conf").write_text(
        SLURM_CONF.format(folder=folder, host=names[0], controller_port=controller_port, nodes="\n".join(nodes))
    )
    (folder / "gres.conf").write_text(GRES_CONF)


def _free_ports(n_ports: int) -> list[int]:
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("", 0))) for _ in range(n_ports)]
        return [server.getsockname()[1] for server in servers]


def _start(folder: Path, n_nodes: int) -> None:
    munge, conf = folder / "munge", str(folder / "slurm.conf")
    options = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
    _start_daemon(folder, "munged", *[f"--{option}={munge / name}" for option, name in options.items()], user="munge")
    # -c: forgets jobs and nodes of an earlier cluster; slurmd also kills processes of those jobs.
    _start_daemon(folder, "slurmctld", "-c", "-f", conf)
    for name in node_names(n_nodes):
        _start_daemon(folder, "slurmd", "-c", "-f", conf, "-N", name)
    if not _wait(lambda: answers(folder), START_SECONDS):
        raise ClusterError(f"Slurm's node is not idle after {START_SECONDS:.0f} s\n{_tails(folder)}")


def _start_daemon(folder: Path, daemon: str, *arguments: str, user: str | None = None) -> None:
    program = _which(daemon) or daemon
    # A file, because a pipe would stay open as long as the daemon runs.
    with open(folder / "log" / f"{daemon}.out", "wb") as output:
        status = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **_environment(folder)},
            user=user,
            group=user,
            extra_groups=[] if user else None,
        ).returncode
    if status != 0:
        raise ClusterError(f"{daemon} ended with status {status}\n{_tails(folder)}")


def _tails(folder: Path) -> str:
    """Returns the last lines of every log, each under its path."""
    parts = []
    for path in [folder / "munge/log", *sorted((folder / "log").iterdir())]:
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        if lines:
            parts += [f"{path}:", *[f"  {line}" for line in lines[-N_TAIL_LINES:]]]
    return "\n".join(parts)


def _cancel_jobs(folder: Path) -> None:
    """Cancels all jobs, and waits for their processes to end within KillWait."""
    jobs = _ask(folder, "squeue", "--noheader", "--format=%F").split()
    if jobs:
        _ask(folder, "scancel", *sorted(set(jobs)))
        _wait(lambda: not _ask(folder, "squeue", "--noheader", "--format=%F"), STOP_SECONDS)


def _stop_daemons(folder: Path) -> None:
    for daemon in DAEMONS:
        if not any(_stopped(folder, daemon, by) for by in (signal.SIGTERM, signal.SIGKILL)):
            raise ClusterError(f"{daemon} does not end")


def _stopped(folder: Path, daemon: str, by: signal.Signals) -> bool:
    for process in _processes(folder, daemon):
        with suppress(ProcessLookupError):
            os.kill(process, by)
    return _wait(lambda: not _processes(folder, daemon), STOP_SECONDS)


def _processes(folder: Path, daemon: str) -> list[int]:
    """Returns the processes of a daemon that was started for this folder; a pid file may be outdated."""
    return [process for process, arguments in _command_lines() if _is_ours(folder, daemon, arguments)]


def _is_ours(folder: Path, daemon: str, arguments: list[str]) -> bool:
    return Path(arguments[0]).name == daemon and any(f"{folder}/" in argument for argument in arguments)


def _command_lines() -> Iterator[tuple[int, list[str]]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            yield int(path.parent.name), path.read_text(errors="replace").split("\0")


def _ask(folder: Path, program: str, *arguments: str) -> str:
    """Returns what one of Slurm's clients prints; nothing if it fails."""
    try:
        return subprocess.run(
            [_which(program) or program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            env={**os.environ, **_environment(folder)},
        ).stdout.strip()
    except subprocess.TimeoutExpired:
        return ""


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Waits for a condition; returns whether it became true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Starts or stops a real Slurm of one node for tests.")
    parser.add_argument("action", choices=["up", "down"])
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(os.environ.get(FOLDER_VARIABLE, DEFAULT_FOLDER)),
        help=f"where all its files lie (default: ${FOLDER_VARIABLE} or {DEFAULT_FOLDER})",
    )
    options = parser.parse_args()
    try:
        return _up(options.folder) if options.action == "up" else _down(options.folder)
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1


def _up(folder: Path) -> int:
    was_up = available() is None and answers(folder)
    environment = up(folder)
    print("Slurm is up already" if was_up else "Slurm is up", file=sys.stderr)
    for name, value in environment.items():  # alone on stdout, for eval
        print(f"export {name}={value}")
    return 0


def _down(folder: Path) -> int:
    if os.geteuid() != 0:
        raise ClusterError("Slurm's daemons must be stopped as root")
    down(folder)
    print("Slurm is down", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
