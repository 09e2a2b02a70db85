import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mlfilter_core.compute.devices import DEVICE_TYPES, pick_device, pick_dtype
from mlfilter_core.errors import ConfigError

CPUINFO = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""


def test_auto_is_the_best_device_of_this_machine() -> None:
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    assert pick_device("auto").type == next(name for name in DEVICE_TYPES if present[name])


def test_a_device_is_taken_by_its_name() -> None:
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:x", ""])
def test_an_absent_device_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=rf"device: '{device}' is not available on this machine \(.+\)"):
        pick_device(device)


def test_a_device_that_computes_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="device: 'meta': use auto, cpu, mps, cuda or cuda:<number>"):
        pick_device("meta")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_precision_is_taken_by_its_name(dtype: str) -> None:
    assert pick_dtype(dtype, torch.device("cpu")) == getattr(torch, dtype)


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, torch.bfloat16),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, torch.float32),
        ({"avx2": True}, torch.float32),
    ],
    ids=str,
)
def test_auto_is_bfloat16_where_the_processor_multiplies_it_fast(
    capabilities: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert pick_dtype("auto", torch.device("cpu")) == dtype


@pytest.mark.skipif("amx_bf16" not in CPUINFO, reason="a processor without it")
def test_this_processor_says_what_it_can() -> None:
    assert pick_dtype("auto", torch.device("cpu")) == torch.bfloat16


@pytest.mark.parametrize(("capability", "dtype"), [((8, 0), torch.bfloat16), ((7, 5), torch.float32)])
def test_auto_is_bfloat16_from_ampere_on(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_dtype("auto", torch.device("cuda")) == dtype


KEEP = """
import ctypes, os, sys
from pathlib import Path
import torch
from mlfilter_core.compute.devices import give_back_freed_memory, keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
before = resident()
blocks = [libc.malloc(24 << 20) for _ in range(4)]
for block in blocks:
    ctypes.memset(block, 1, 24 << 20)
for block in reversed(blocks):
    libc.free(block)
left = resident() - before
give_back_freed_memory(torch.device("cpu"))
print(left, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_memory_stays_with_the_process_even_under_dask_until_it_is_given_back() -> None:
    """Dask's nanny starts its workers with this variable."""
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
    left = {}
    for mode in ("keep", "default"):
        command = [sys.executable, "-c", KEEP, mode]
        output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        left[mode], left[f"{mode}, given back"] = map(int, output.split())
    assert left["keep"] > 90 << 20
    assert left["keep, given back"] < 10 << 20
    assert left["default"] < 10 << 20
