import argparse
import collections
import datetime
import pathlib
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mlfilter_core.errors import HeadError
from mlfilter_core.heads.checkpoint_formats import load_head
from mlfilter_core.heads.checkpoint_tensors import STAND_INS, WRAPPERS, read_tensors
from mlfilter_core.heads.head import score
from tests.mlfilter_core.heads.saved_modules import DIM, INPUTS, L, check, randomised, save

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


@pytest.mark.parametrize("key", ["params", "model", "config"])
def test_settings_beside_tensors_are_no_weights(tmp_path: Path, key: str) -> None:
    own: dict[str, Any] = {"lr": 1, "layers": [{"n": 2}]}
    own["self"] = own
    torch.save({**STATE, key: own}, tmp_path / "x.pt")
    assert read(tmp_path / "x.pt")[0] == list(STATE)


def test_nested_tensors_beside_tensors_are_not_dropped(tmp_path: Path) -> None:
    torch.save({**STATE, "other": {"layers": [{"weight": torch.ones(1, 1)}]}}, tmp_path / "x.pt")
    with pytest.raises(HeadError, match="not a chain of linear layers; it contains other"):
        load_head("x", tmp_path / "x.pt")


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
    before = set(torch.serialization.get_safe_globals())
    read(tmp_path / "x.ckpt")
    assert set(torch.serialization.get_safe_globals()) == before


LEFT_OUT = ["criterion.pos_weight", "loss_fn.weight", "val_metric.sum", "train_acc.correct", "metrics.f1.tp",
            "pos_weight", "class_weights", "test_mae.total", "val_conf.matrix", "bce_loss.pos_weight",
            "train_criterion.weight", "val_mean_squared_error.total", "val_metric.mean_value"]  # fmt: skip


@pytest.mark.parametrize("name", LEFT_OUT)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_buffers_of_losses_and_metrics_are_left_out_and_named(tmp_path: Path, name: str, prefix: str) -> None:
    state = {f"{prefix}{key}": tensor for key, tensor in STATE.items()}
    torch.save({**state, name: torch.tensor([2.0, 3.0])}, tmp_path / "x.ckpt")
    head = load_head("x", tmp_path / "x.ckpt")
    assert head.widths == (6, 4, 1)
    assert head.assumptions[-1] == f"left out as loss or metric: {name}"


@pytest.mark.parametrize("name", ["val_temperature", "test_scale", "best_logit_bias", "val_calibration.temperature"])
def test_what_may_change_scores_is_refused_and_not_left_out_as_a_metric(tmp_path: Path, name: str) -> None:
    torch.save({**STATE, name: torch.tensor(2.5)}, tmp_path / "x.pt")
    with pytest.raises(HeadError, match=f"not a chain of linear layers; it contains {name}"):
        load_head("x", tmp_path / "x.pt")


@pytest.mark.parametrize(("mean", "std"), [("train_mean", "train_std"), ("train_stats.mean", "train_stats.std")])
def test_statistics_of_the_training_set_standardise(tmp_path: Path, mean: str, std: str) -> None:
    module = randomised(L(DIM, 1))
    own = {mean: torch.linspace(-1, 1, DIM), std: torch.linspace(0.5, 2, DIM)}
    torch.save({**{f"fc.{key}": tensor for key, tensor in module.state_dict().items()}, **own}, tmp_path / "x.pt")
    head = load_head("x", tmp_path / "x.pt")
    with torch.inference_mode():
        expected = module((INPUTS - own[mean]) / own[std]).numpy()
    np.testing.assert_allclose(score([head], INPUTS.numpy()), expected, atol=1e-5)
    assert head.assumptions == (f"{mean} standardizes the embeddings",)


@pytest.mark.parametrize("name", ["test_norm", "train_bn", "val_stage"])
@pytest.mark.parametrize("make", [nn.LayerNorm, nn.BatchNorm1d])
def test_a_norm_is_never_taken_for_a_metric(tmp_path: Path, name: str, make: type[nn.Module]) -> None:
    module = randomised(nn.Sequential(OrderedDict({name: make(DIM), "fc": L(DIM, 1)})))
    head = load_head("x", save(module, tmp_path / "x.pt"))
    check(head, module)
    assert head.assumptions[0] == f"{name} before fc"


def test_the_counter_of_an_averaged_model_is_left_out_and_named(tmp_path: Path) -> None:
    module = randomised(nn.Sequential(L(DIM, 4), nn.ReLU(), L(4, 1)))
    averaged = torch.optim.swa_utils.AveragedModel(module)
    head = load_head("x", save(averaged, tmp_path / "x.pt"))
    check(head, module)
    assert head.assumptions == ("relu between 0 and 2", "nothing after 2", "left out as counter: n_averaged")


def test_a_linear_layer_is_never_taken_for_a_loss(tmp_path: Path) -> None:
    torch.save({"test_head.weight": torch.ones(2, 6), "test_head.bias": torch.ones(2)}, tmp_path / "x.pt")
    assert load_head("x", tmp_path / "x.pt").widths == (6, 2)
