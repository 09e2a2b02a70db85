"""Shared parts of the benchmarks: alternating timing, description of the machine, tables, result files.

Needs PyTorch and nothing else, for machines with GPUs on which this project is not installed.
"""

import argparse
import datetime
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mlfilter_core.versions import library_versions

MATRIX_SIDE = 2048
MATRIX_PRODUCTS = 8
MATRIX_FLOPS = 2 * MATRIX_SIDE**3 * MATRIX_PRODUCTS


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a command line with the options that every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, help="write the figures to this file as one flat object")
    options.add_argument("--rounds", type=int, default=5, help="timed rounds after one warm-up (default: 5)")
    options.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    return options


def alternate(
    rounds: int, runs: dict[str, Callable[[], Any]], clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Times callables in alternating order, A B C A B C ..., so that a drift in machine speed affects all equally.

    Args:
        rounds: Timed rounds after a warm-up.
        runs: The callables.
        clock: Clock in seconds; `time.process_time` leaves out the time in which other processes run.

    Returns:
        Median seconds of each, over the rounds after a warm-up.
    """
    *_, medians = alternating(rounds, runs, clock=clock)
    return medians


def alternating(
    rounds: int,
    runs: Mapping[str, Callable[[], Any]],
    until: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[dict[str, float]]:
    """Yields the median seconds so far of each callable after each round that follows the warm-up.

    Begins no round after the first that would end later than `until`, on the clock of `time.monotonic`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        begun = time.monotonic()
        for name, run in runs.items():
            started = clock()
            run()
            if turn:
                seconds[name].append(clock() - started)
        if turn:
            yield {name: statistics.median(samples) for name, samples in seconds.items()}
            if 2 * time.monotonic() - begun > until:
                return


def matrix_product(
    multiply: Callable[[torch.Tensor], Any], dtype: torch.dtype, device: str = "cpu", side: int = MATRIX_SIDE
) -> Callable[[], Any]:
    """Returns a run of bare products of two square matrices, `2 * side**3 * MATRIX_PRODUCTS` operations in all."""
    matrix = torch.randn(side, side, device=device).to(dtype)

    @torch.inference_mode()
    def run() -> None:
        for _ in range(MATRIX_PRODUCTS):
            multiply(matrix)
        synchronize(device)

    return run


def synchronize(device: str) -> None:
    """Waits until a GPU has finished its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_bytes(*command: str) -> int:
    """Returns the peak resident memory of a Python child process that runs this file's caller with `command`."""
    output = subprocess.run([sys.executable, sys.argv[0], *command], check=True, capture_output=True, text=True).stdout
    return int(output.split()[-1])


def print_peak_memory() -> None:
    """Prints the peak resident memory of this process, in bytes; for the child of `peak_memory_bytes`.

    Linux only. `getrusage` would include the memory of the parent at the fork.
    """
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) * 1024)


def publish(figures: Mapping[str, float], about: Mapping[str, str], json_file: Path | None) -> None:
    """Prints the figures; with a path, also writes them with machine, versions and command."""
    facts = {**facts_of_run(), **about}
    if json_file is not None:
        write_result(json_file, figures, facts)
    print_result(figures, facts)


def facts_of_run() -> dict[str, str]:
    """Returns date, machine, versions and command."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": ", ".join(f"{name} {version}" for name, version in library_versions().items()),
        "command": f"python {' '.join(sys.argv)}",
    }


def write_result(json_file: Path, figures: Mapping[str, float], facts: Mapping[str, Any]) -> None:
    """Writes a result file, complete or not at all."""
    json_file.parent.mkdir(parents=True, exist_ok=True)
    rounded = {name: float(f"{value:.5g}") for name, value in figures.items()}
    temporary = json_file.with_name(f".{json_file.name}.{os.getpid()}")
    temporary.write_text(json.dumps({**rounded, **facts}, indent=2) + "\n")
    os.replace(temporary, json_file)


def print_result(figures: Mapping[str, float], facts: Mapping[str, Any]) -> None:
    """Prints the figures as a table, and the facts below it."""
    width = max(map(len, figures), default=0)
    for name, value in figures.items():
        print(f"{name:{width}} {f'{value:,.3f}' if abs(value) < 100 else f'{value:,.0f}':>16}")
    for name, fact in facts.items():
        print(f"{name}: {fact}")


def machine() -> str:
    """Returns GPU, processor, cores and memory."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    name = model[1] if model else platform.processor()
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{name}, {len(os.sched_getaffinity(0))} cores, {memory_gib:.0f} GiB, {platform.system()}"
