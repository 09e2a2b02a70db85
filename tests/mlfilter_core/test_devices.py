import pytest
import torch

from mlfilter_core.devices import DEVICE_TYPES, pick_device
from mlfilter_core.errors import ConfigError


def test_auto_is_the_best_device_of_this_machine() -> None:
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    assert pick_device("auto").type == next(name for name in DEVICE_TYPES if present[name])


def test_a_device_is_taken_by_its_name() -> None:
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:x", ""])
def test_an_absent_device_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=rf"device: '{device}' is not to be had on this machine \(.+\)"):
        pick_device(device)


def test_a_device_that_computes_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="device: 'meta': use auto, cpu, mps, cuda or cuda:<number>"):
        pick_device("meta")
