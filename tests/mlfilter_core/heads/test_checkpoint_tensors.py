import argparse
import collections
import datetime
import pathlib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlfilter_core.errors import HeadError
from mlfilter_core.heads.checkpoint_formats import load_head
from mlfilter_core.heads.checkpoint_tensors import STAND_INS, WRAPPERS, read_tensors

STATE = {"0.weight": torch.ones(4, 6), "0.bias": torch.ones(4), "2.weight": torch.ones(1, 4)}


def read(path: Path) -> tuple[list[str], dict[str, Any]]:
    tensors, facts = read_tensors(path, "head x: x.pt")
    return list(tensors), facts


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_weights_are_found_under_the_keys_of_trainers(tmp_path: Path, wrapper: str) -> None:
    content = {"epoch": 1, "optimizer": {"state": {}}, wrapper: STATE, "best_val_loss": torch.tensor(0.3)}
    torch.save(content, tmp_path / "x.pt")
    assert read(tmp_path / "x.pt") == (list(STATE), {})
    torch.save({"state_dict": {wrapper: STATE}}, tmp_path / "x.pt")
    assert read(tmp_path / "x.pt")[0] == list(STATE)


def test_weights_under_several_keys_are_refused(tmp_path: Path) -> None:
    torch.save({"model": STATE, "head": STATE}, tmp_path / "x.pt")
    with pytest.raises(HeadError, match="it contains weights under model and head; save those of the head alone"):
        read(tmp_path / "x.pt")


PREFIXES = [
    "module.",
    "_orig_mod.",
    "model.",
    "_orig_mod.module.",
    "model.head.net.",
    "scorer.mlp.",
    "regression_head.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers_do_not_matter(tmp_path: Path, prefix: str) -> None:
    torch.save({f"{prefix}{key}": tensor for key, tensor in STATE.items()}, tmp_path / "x.pt")
    head = load_head("x", tmp_path / "x.pt")
    assert (head.widths, head.assumptions) == ((6, 4, 1), ("relu between 0 and 2", "nothing after 2"))


OBJECTS: dict[str, Any] = {
    "a namespace": argparse.Namespace(input_dim=6, lr=1e-3, out=pathlib.PurePosixPath("/x")),
    "a simple namespace": types.SimpleNamespace(lr=1e-3),
    "a path": pathlib.PosixPath("/x"),
    "a numpy scalar": np.float64(0.3),
    "a numpy array": np.arange(3),
    "a default dictionary": collections.defaultdict(list, a=[1]),
    "a time": datetime.datetime(2026, 1, 1),
    "a duration": datetime.timedelta(1),
    "a slice": slice(1),
}


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_beside_the_weights_are_read_as_data(tmp_path: Path, name: str, is_zip: bool) -> None:
    content = {"state_dict": STATE, "hyper_parameters": OBJECTS[name], "callbacks": {"best": [OBJECTS[name]]}}
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=is_zip)
    keys, facts = read(tmp_path / "x.ckpt")
    assert (keys, facts) == (list(STATE), {"input_dim": 6} if name == "a namespace" else {})


def test_settings_in_a_namespace_are_compared_with_the_weights(tmp_path: Path) -> None:
    content = {"state_dict": STATE, "hyper_parameters": argparse.Namespace(input_dim=7)}
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(HeadError, match="its settings say input_dim 7, its weights 6"):
        load_head("x", tmp_path / "x.ckpt")


def test_no_class_of_a_file_is_ever_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The stand-ins are ours, and keep nothing but the attributes of a namespace."""
    content = {"state_dict": STATE, "x": [argparse.Namespace(lr=1), pathlib.PosixPath("/x"), np.float64(1)]}
    torch.save(content, tmp_path / "x.ckpt")
    monkeypatch.setattr(argparse.Namespace, "__init__", lambda *args, **kwargs: pytest.fail("it was made"))
    monkeypatch.setattr(pathlib.PosixPath, "__new__", lambda *args, **kwargs: pytest.fail("it was made"))
    tensors, _ = read_tensors(tmp_path / "x.ckpt", "x")
    assert list(tensors) == list(STATE)
    assert {stand_in.__module__ for stand_in in STAND_INS.values()} == {"mlfilter_core.heads.checkpoint_tensors"}
    assert not {name.partition(".")[0] for name in STAND_INS} & {"os", "posix", "nt", "sys", "subprocess", "shutil"}


def test_the_stand_ins_are_forgotten_after_the_file(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "x": pathlib.PosixPath("/x")}, tmp_path / "x.ckpt")
    before = torch.serialization.get_safe_globals()
    read(tmp_path / "x.ckpt")
    assert torch.serialization.get_safe_globals() == before


LEFT_OUT = ["criterion.pos_weight", "loss_fn.weight", "val_metric.sum", "train_acc.correct", "metrics.f1.tp",
            "pos_weight", "class_weights", "test_mae.total", "val_conf.matrix", "bce_loss.pos_weight"]  # fmt: skip


@pytest.mark.parametrize("name", LEFT_OUT)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_buffers_of_losses_and_metrics_are_left_out_and_named(
    tmp_path: Path, name: str, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = {f"{prefix}{key}": tensor for key, tensor in STATE.items()}
    torch.save({**state, name: torch.tensor([2.0, 3.0])}, tmp_path / "x.ckpt")
    assert load_head("x", tmp_path / "x.ckpt").widths == (6, 4, 1)
    assert f"{name} left out: a loss or a metric is no part of a head" in caplog.text


def test_a_linear_layer_is_never_taken_for_a_loss(tmp_path: Path) -> None:
    torch.save({"test_head.weight": torch.ones(2, 6), "test_head.bias": torch.ones(2)}, tmp_path / "x.pt")
    assert load_head("x", tmp_path / "x.pt").widths == (6, 2)
