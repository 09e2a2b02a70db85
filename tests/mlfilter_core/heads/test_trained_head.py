import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mlfilter_core.errors import HeadError
from mlfilter_core.files.publishing import publish
from mlfilter_core.heads.checkpoint_formats import load_head
from mlfilter_core.heads.head import score
from mlfilter_core.heads.trained_head import TrainedHead, read_training, write_head

ENCODER: dict[str, Any] = {"weights_sha256": "a" * 64, "pooling": "mean", "prompt": "", "max_length": 512}


def trained(**other: Any) -> TrainedHead:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)]
    facts = {"activation": "gelu", "task": "regression", "labels": ("a", "b"), "encoder": ENCODER, "training": {"n": 1}}
    weights = [layer.weight.detach() for layer in layers]
    return TrainedHead(weights, [layer.bias.detach() for layer in layers], **{**facts, **other})


def test_a_written_head_is_loaded_as_it_was(tmp_path: Path) -> None:
    made = trained()
    write_head(tmp_path / "x.safetensors", made)
    head = load_head("quality", tmp_path / "x.safetensors")
    assert (head.assumptions, head.task, head.labels, head.encoder) == ((), "regression", ("a", "b"), ENCODER)
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    hidden = torch.nn.functional.gelu(inputs @ made.weights[0].T + made.biases[0])
    expected = hidden @ made.weights[1].T + made.biases[1]
    torch.testing.assert_close(torch.from_numpy(score([head], inputs.numpy())), expected)


def test_a_head_of_an_unknown_encoder_says_so_by_saying_nothing(tmp_path: Path) -> None:
    write_head(tmp_path / "x.safetensors", trained(encoder={}, labels=()))
    head = load_head("quality", tmp_path / "x.safetensors")
    assert (head.encoder, head.labels) == ({}, ())


@pytest.mark.parametrize(("umask", "mode"), [(0o027, 0o640), (0o077, 0o600)])
def test_the_umask_decides_who_may_read_a_head(tmp_path: Path, umask: int, mode: int) -> None:
    (tmp_path / "x.safetensors").touch()
    before = os.umask(umask)
    try:
        with publish(tmp_path / "x.safetensors") as temporary:
            write_head(temporary, trained())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == mode


def test_the_layers_can_be_loaded_into_a_torch_module(tmp_path: Path) -> None:
    write_head(tmp_path / "x.safetensors", trained())
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        assert file.metadata()["format"] == "mlfilter-head/1"
    torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.GELU(), torch.nn.Linear(3, 2)).load_state_dict(state)


def test_what_the_training_said_is_read_back(tmp_path: Path) -> None:
    training = {"metrics": {"spearman": 0.5, "r2": None}, "request": {"name": "ä"}, "loss": [1.0, 0.25]}
    write_head(tmp_path / "x.safetensors", trained(training=training))
    assert read_training(tmp_path / "x.safetensors") == training


def test_heads_of_others_say_nothing_of_their_training(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.zeros(1, 4)}, path)
    assert read_training(path) is None
    save_file({"weight": torch.zeros(1, 4)}, path, {"training": json.dumps([1])})
    assert read_training(path) is None
    for content in (b"", b"no safetensors"):
        path.write_bytes(content)
        with pytest.raises(HeadError, match=r"x.safetensors is not a head that was trained here \(.+\); move it away"):
            read_training(path)
