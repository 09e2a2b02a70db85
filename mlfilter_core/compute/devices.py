"""Devices and dtypes to compute with, and the memory of a device."""

import ctypes

import torch

from mlfilter_core.errors import ConfigError

DEVICE_TYPES = ("cuda", "mps", "cpu")
# Messages of errors for which PyTorch has no separate class; the last is oneDNN's.
OUT_OF_MEMORY = (
    *("out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),
    *("DefaultCPUAllocator", "bad_alloc", "could not create a primitive"),
)

# Options of glibc's mallopt, from malloc.h: number, value in bytes. The first value is arbitrary, well above the size
# of a layer's tensors; the second is the largest that glibc accepts.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = (-1, 256 << 20), (-3, 32 << 20)


def pick_device(device: str) -> torch.device:
    """Returns the named torch device; `auto` is CUDA if available, then MPS, then CPU.

    Raises:
        ConfigError: This machine has no such device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"device: {device!r} is not available on this machine ({reason})") from error
    if chosen.type not in DEVICE_TYPES:
        raise ConfigError(f"device: {device!r}: use auto, cpu, mps, cuda or cuda:<number>")
    return chosen


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Returns the named torch dtype; `auto` is bfloat16 if the device has fast instructions for it, else float32.

    GPUs since Ampere have fast ones, and CPUs with AMX, and AMD's with AVX512-BF16. An Intel Xeon with AVX512-BF16 but
    without AMX embeds with them at 0.7 times the speed of float32.
    """
    if dtype != "auto":
        return getattr(torch, dtype)  # type: ignore[no-any-return]
    if device.type == "cuda":
        is_fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        is_by_intel = "Intel" in str(capabilities.get("cpu_name"))
        has_fast_avx512 = bool(capabilities.get("avx512_bf16")) and not is_by_intel
        is_fast = device.type == "cpu" and (bool(capabilities.get("amx_bf16")) or has_fast_avx512)
    return torch.bfloat16 if is_fast else torch.float32


def is_out_of_memory(error: Exception) -> bool:
    """Whether an operation failed for lack of memory, so that a smaller one may succeed."""
    is_known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return is_known or any(words in str(error) for words in OUT_OF_MEMORY)


def keep_freed_memory() -> bool:
    """Lets this process keep memory that a layer frees, for the next layer; returns whether that is possible here.

    glibc returns large blocks to the kernel at once, and Dask sets it to return every 64 kB. Tensors of some MB then
    cause page faults in every layer, and embedding on a CPU takes 1.2 to 1.6 times as long.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*option) == 1 for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD))


def give_back_freed_memory(device: torch.device) -> None:
    """Returns freed memory to the system after an operation ran out of memory, so that a smaller one may succeed.

    On a CPU, glibc otherwise keeps it for tensors (see `keep_freed_memory`), out of reach of oneDNN's code and threads.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "cpu" and (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        malloc_trim(0)
