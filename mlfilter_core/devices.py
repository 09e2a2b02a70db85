"""Where tensors are computed."""

import torch

from mlfilter_core.errors import ConfigError

DEVICE_TYPES = ("cuda", "mps", "cpu")


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
