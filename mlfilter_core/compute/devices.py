"""Where tensors are computed, and in which precision."""

import ctypes

import torch

from mlfilter_core.errors import ConfigError

DEVICE_TYPES = ("cuda", "mps", "cpu")
# PyTorch has a class for a GPU's; libraries under it and other devices only have words, the last oneDNN's.
OUT_OF_MEMORY = (
    *("out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),
    *("DefaultCPUAllocator", "bad_alloc", "could not create a primitive"),
)

# What of malloc.h `keep_freed_memory` sets. The first is arbitrary, well above the tensors of a layer; the second is
# the most that glibc takes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = (-1, 256 << 20), (-3, 32 << 20)


def pick_device(device: str) -> torch.device:
    """Returns the named torch device; `auto` is CUDA, then MPS, then CPU.

    Raises:
        ConfigError: There is no such device on this machine.
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
        raise ConfigError(f"device: {device!r} is not to be had on this machine ({reason})") from error
    if chosen.type not in DEVICE_TYPES:
        raise ConfigError(f"device: {device!r}: use auto, cpu, mps, cuda or cuda:<number>")
    return chosen


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Returns the named torch dtype; `auto` is bfloat16 where the device multiplies it fast, else float32.

    That is CUDA from Ampere on, and CPUs with AVX512-BF16 or AMX.
    """
    if dtype != "auto":
        return getattr(torch, dtype)  # type: ignore[no-any-return]
    if device.type == "cuda":
        is_fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        is_fast = device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.bfloat16 if is_fast else torch.float32


def is_out_of_memory(error: Exception) -> bool:
    """Whether an operation failed because its device has too little memory, so that a smaller one may work."""
    is_known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return is_known or any(words in str(error) for words in OUT_OF_MEMORY)


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that one layer frees for the next; returns whether that can be set here.

    glibc gives large blocks back at once, and Dask tells it to give back every 64 kB: tensors of some MB then cost
    their page faults anew in every layer. Embedding on a CPU took 1.2 to 1.6 times as long.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*option) == 1 for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD))


def give_back_freed_memory(device: torch.device) -> None:
    """Gives back what an operation that ran out of memory had taken, so that all of it is there for a smaller one.

    On a CPU glibc else keeps it (see `keep_freed_memory`) for tensors, where oneDNN's code and threads cannot get it.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "cpu" and (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        malloc_trim(0)
