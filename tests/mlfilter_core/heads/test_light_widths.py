import argparse
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mlfilter_core.errors import HeadError
from mlfilter_core.heads.checkpoint_files import find_head
from mlfilter_core.heads.light_widths import check_layers

DIM, OTHER = 6, 7
HEAD = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 4), nn.ReLU(), nn.Linear(4, 1))
STATE = HEAD.state_dict()


def check(path: Path, dim: int) -> None:
    check_layers("edu", find_head("edu", path), dim, "x.h5")


def save_lightning(path: Path) -> None:
    settings = argparse.Namespace(input_dim=DIM)
    torch.save({"state_dict": STATE, "hyper_parameters": settings, "callbacks": {Path("a"): [{1, 2}]}}, path)


def save_parameters(path: Path) -> None:
    torch.save(OrderedDict((name, nn.Parameter(value)) for name, value in STATE.items()), path)


@pytest.mark.parametrize(
    ("suffix", "save"),
    [
        (".pt", lambda path: torch.save(STATE, path)),
        (".pt", lambda path: torch.save({name: value.bfloat16() for name, value in STATE.items()}, path)),
        (".ckpt", save_lightning),
        (".bin", save_parameters),
        (".safetensors", lambda path: save_file(STATE, path)),
    ],
    ids=["plain", "bfloat16", "Lightning", "parameters", "safetensors"],
)
def test_a_head_without_a_layer_of_the_width_is_refused(
    tmp_path: Path, suffix: str, save: Callable[[Path], None]
) -> None:
    path = tmp_path / f"head{suffix}"
    save(path)
    check(path, DIM)
    with pytest.raises(HeadError) as raised:
        check(path, OTHER)
    assert str(raised.value) == (
        f"head edu: no layer of {path} takes embeddings of width 7, as those of x.h5 are; its layers: 4 x 6, 1 x 4; "
        "use the head that was trained on this encoder's embeddings"
    )


def save_legacy(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)


def save_sparse(path: Path) -> None:
    torch.save({**STATE, "0.weight": torch.ones(4, OTHER).to_sparse()}, path)


def save_subclass(path: Path) -> None:
    torch.save({"0.weight": torch.ones(4, OTHER).as_subclass(Named), "2.weight": STATE["3.weight"]}, path)


class Named(torch.Tensor):
    """A tensor that torch writes in another way."""


@pytest.mark.parametrize(
    "save",
    [save_legacy, save_sparse, save_subclass, lambda path: path.write_bytes(b"no head"), Path.touch],
    ids=["legacy", "sparse", "subclass", "text", "empty"],
)
def test_a_file_whose_shapes_are_not_all_known_is_left_to_the_loading(
    tmp_path: Path, save: Callable[[Path], Any]
) -> None:
    save(tmp_path / "head.pt")
    check(tmp_path / "head.pt", OTHER)


def test_a_pickle_that_names_a_huge_place_takes_no_memory(tmp_path: Path) -> None:
    pickled = b"\x80\x02}r" + (2**32 - 1).to_bytes(4, "little") + b"."  # a memo of 4 billion entries
    with zipfile.ZipFile(tmp_path / "head.pt", "w") as archive:
        archive.writestr("head/data.pkl", pickled)
    tracemalloc.start()
    check(tmp_path / "head.pt", OTHER)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


class Code:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pickle.loads, (pickle.dumps(Touch(self.marker)),)  # type: ignore[return-value]


class Touch:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.marker,)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    marker = tmp_path / "code ran"
    torch.save({**STATE, "code": Code(marker), "more": Touch(marker)}, tmp_path / "head.pt")
    with pytest.raises(HeadError, match="no layer"):
        check(tmp_path / "head.pt", OTHER)
    check(tmp_path / "head.pt", DIM)
    assert not marker.exists()
