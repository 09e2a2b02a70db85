import hashlib
import itertools
import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mlfilter_core.errors import HeadError
from mlfilter_core.heads.checkpoint_files import find_head
from mlfilter_core.heads.checkpoint_formats import load_head
from mlfilter_core.heads.head import find_mismatched_heads, score
from mlfilter_core.heads.layers import first_weight

DIM = 6
EMBEDDINGS = np.random.default_rng(0).standard_normal((5, DIM), np.float32)
Tensors = dict[Any, Any]


def mlp(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise(widths):
            layers += [nn.Linear(n_in, n_out), activation()]
        return nn.Sequential(*layers[:-1])


def forward(module: nn.Module) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        return module(torch.from_numpy(EMBEDDINGS)).numpy()


def save_safetensors(tensors: Tensors, path: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def save_pt(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("save", [save_pt, save_safetensors])
@pytest.mark.parametrize("widths", [(DIM, 1), (DIM, 4, 1), (DIM, 5, 4, 3)], ids=str)
def test_a_head_scores_as_its_torch_module_does(
    tmp_path: Path, save: Callable[[Any, Path], Path], widths: tuple[int, ...]
) -> None:
    module = mlp(*widths)
    path = save(module.state_dict(), tmp_path / ("x.pt" if save is save_pt else "x.safetensors"))
    head = load_head("quality", path)
    assert (head.name, head.widths) == ("quality", widths)
    assert find_head("quality", path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    scores = score([head], EMBEDDINGS)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, forward(module), atol=1e-6)


def test_layers_follow_one_another_in_the_natural_order_of_their_names(tmp_path: Path) -> None:
    module = mlp(DIM, 5, 4, 1)
    names = {"0": "mlp.0", "2": "mlp.2", "4": "mlp.10"}
    state = {f"{names[key[0]]}{key[1:]}": tensor for key, tensor in module.state_dict().items()}
    head = load_head("x", save_pt(dict(reversed(state.items())), tmp_path / "x.pt"))
    np.testing.assert_allclose(score([head], EMBEDDINGS), forward(module), atol=1e-6)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict"])
def test_a_training_checkpoint_is_unwrapped(tmp_path: Path, wrapper: str) -> None:
    module = mlp(DIM, 1)
    path = save_pt({"epoch": 3, wrapper: module.state_dict(), "optimizer": {"lr": 0.1}}, tmp_path / "x.ckpt")
    np.testing.assert_allclose(score([load_head("x", path)], EMBEDDINGS), forward(module), atol=1e-6)


def test_a_folder_holds_its_weights_in_safetensors(tmp_path: Path) -> None:
    save_safetensors(mlp(DIM, 1).state_dict(), tmp_path / "model.safetensors")
    assert load_head("x", tmp_path).dim == DIM


@pytest.mark.parametrize(("name", "module"), [("relu", nn.ReLU), ("gelu", nn.GELU), ("tanh", nn.Tanh)])
def test_the_metadata_may_name_the_activation(tmp_path: Path, name: str, module: Callable[[], nn.Module]) -> None:
    expected = mlp(DIM, 4, 1, activation=module)
    path = save_safetensors(expected.state_dict(), tmp_path / "x.safetensors", {"activation": name})
    np.testing.assert_allclose(score([load_head("x", path)], EMBEDDINGS), forward(expected), atol=1e-6)


def test_an_unknown_activation_is_refused(tmp_path: Path) -> None:
    path = save_safetensors(mlp(DIM, 4, 1).state_dict(), tmp_path / "x.safetensors", {"activation": "swish"})
    with pytest.raises(
        HeadError, match=r"head x: .*x\.safetensors: unknown activation 'swish'; known: relu, gelu, tanh"
    ):
        load_head("x", path)


def test_a_missing_bias_is_zero(tmp_path: Path) -> None:
    weight = torch.arange(DIM, dtype=torch.float32).reshape(1, DIM)
    head = load_head("x", save_pt({"weight": weight}, tmp_path / "x.pt"))
    np.testing.assert_allclose(score([head], EMBEDDINGS), EMBEDDINGS @ weight.numpy().T, atol=1e-6)


def test_weights_of_half_precision_are_read_as_float32(tmp_path: Path) -> None:
    module = mlp(DIM, 1).to(torch.bfloat16)
    head = load_head("x", save_safetensors(module.state_dict(), tmp_path / "x.safetensors"))
    np.testing.assert_allclose(score([head], EMBEDDINGS), forward(module.float()), atol=1e-6)


def test_several_heads_score_side_by_side(tmp_path: Path) -> None:
    modules = [mlp(DIM, 1), mlp(DIM, 4, 3)]
    heads = [load_head(f"h{i}", save_pt(m.state_dict(), tmp_path / f"{i}.pt")) for i, m in enumerate(modules)]
    np.testing.assert_allclose(score(heads, EMBEDDINGS), np.hstack([forward(m) for m in modules]), atol=1e-6)


def test_no_embeddings_give_no_scores(tmp_path: Path) -> None:
    head = load_head("x", save_pt(mlp(DIM, 3).state_dict(), tmp_path / "x.pt"))
    assert score([head], EMBEDDINGS[:0]).shape == (0, 3)


def test_a_head_in_another_precision_gives_nearly_the_same_scores(tmp_path: Path) -> None:
    head = load_head("x", save_pt(mlp(DIM, 4, 1).state_dict(), tmp_path / "x.pt"))
    low = head.to(torch.device("cpu"), torch.bfloat16)
    assert first_weight(low.layers).dtype == torch.bfloat16
    assert score([low], EMBEDDINGS).dtype == np.float32
    assert not np.array_equal(score([low], EMBEDDINGS), score([head], EMBEDDINGS))
    np.testing.assert_allclose(score([low], EMBEDDINGS), score([head], EMBEDDINGS), atol=0.05)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [lambda content, path: path.write_bytes(pickle.dumps(content)), save_pt])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, write: Callable[[Any, Path], Any]) -> None:
    evil = {"weight": torch.ones(1, DIM), "payload": Touch(tmp_path / "executed")}
    write(evil, tmp_path / "x.pt")
    with pytest.raises(
        HeadError, match=r"x\.pt does not load as plain tensors \(.+\); nothing in it was executed\. Save it"
    ):
        load_head("x", tmp_path / "x.pt")
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(evil))
    assert (tmp_path / "executed").exists(), "the payload is harmless, so that this test proves nothing"


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        HeadError, match=r"x\.pt does not load as plain tensors .*torch\.save\(head\.state_dict\(\), path\)"
    ):
        load_head("x", save_pt(mlp(DIM, 1), tmp_path / "x.pt"))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken", b"\x80\x02."], ids=repr)
def test_a_corrupted_file_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(HeadError, match=rf"head x: .*x\{suffix} does not load as plain tensors \(.+\)"):
        load_head("x", path)


@pytest.mark.parametrize("save", [save_pt, save_safetensors])
def test_a_file_cut_short_is_refused(tmp_path: Path, save: Callable[[Any, Path], Path]) -> None:
    path = save(mlp(DIM, 400, 1).state_dict(), tmp_path / ("x.pt" if save is save_pt else "x.safetensors"))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(HeadError, match="does not load as plain tensors"):
        load_head("x", path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeadError, match=r"head x: the checkpoint .*/x\.pt does not exist; fix the path"):
        load_head("x", tmp_path / "x.pt")
    with pytest.raises(HeadError, match=r"head x: the folder .* has no model\.safetensors and no pytorch_model\.bin"):
        load_head("x", tmp_path)


MATRIX, ROW = torch.ones(1, DIM), torch.ones(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.ones(DIM)}, "not a chain of linear layers; it contains weight"),
        ({"weight": torch.ones(1, DIM, 3)}, "weight is not a matrix; only linear layers"),
        ({"weight": torch.ones(1, DIM, dtype=torch.int64)}, "weight is not a matrix; only linear layers"),
        ({"weight": [[1.0] * DIM]}, "weight is not a matrix; only linear layers"),
        ({"weight": MATRIX, "bias": torch.ones(2)}, r"the bias of weight has shape \(2,\), not \(1,\)"),
        ({"weight": MATRIX, "bias": 0.5}, r"the bias of weight is a float, not a tensor"),
        (
            {"0.weight": torch.ones(4, DIM), "0.bias": torch.ones(4), "2.weight": torch.ones(1, 5)},
            r"2\.weight takes 5 values, but the layer before it gives 4",
        ),
        ({"weight": MATRIX, "norm.running_mean": ROW}, r"not a chain of linear layers; it contains norm\.running_mean"),
        ({"weight": MATRIX, "epoch": 3}, "not a chain of linear layers; it contains epoch"),
        ({"bias": ROW}, "not a chain of linear layers; it contains bias"),
        ({0: MATRIX}, "not a chain of linear layers; it contains 0"),
        ({}, "not a chain of linear layers; it contains nothing"),
        ({"weight": torch.full((1, DIM), torch.nan)}, "a weight is NaN or infinite; the head's training diverged"),
        ({"weight": MATRIX, "bias": ROW * torch.inf}, "a weight is NaN or infinite"),
        (MATRIX, r"does not load as plain tensors \(it contains a Tensor, not a state dict\)"),
        ([MATRIX], r"does not load as plain tensors \(it contains a list, not a state dict\)"),
    ],
)
def test_what_is_no_chain_of_linear_layers_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(HeadError, match=rf"head x: .*x\.pt:? {message}"):
        load_head("x", save_pt(content, tmp_path / "x.pt"))


def test_an_ordered_state_dict_is_a_state_dict(tmp_path: Path) -> None:
    assert load_head("x", save_pt(OrderedDict(weight=MATRIX, bias=ROW), tmp_path / "x.pt")).n_outputs == 1


def test_a_head_of_another_encoder_is_refused_unless_that_is_wanted(tmp_path: Path) -> None:
    encoder = {"model": "org/one", "revision": "0123456789abcdef", "weights_sha256": "a" * 64, "max_length": 512}
    metadata = {"encoder": json.dumps(encoder)}
    head = load_head("x", save_safetensors(mlp(DIM, 1).state_dict(), tmp_path / "x.safetensors", metadata))
    other = {"model": "org/two", "weights_sha256": "b" * 64, "max_length": 256, "pooling": "mean"}
    differences = "weights_sha256 (aaaaaaaaaaaa and bbbbbbbbbbbb), max_length (512 and 256)"
    message = (
        "head x was trained on embeddings of org/one at 0123456789ab, but x.h5 was made by org/two; they differ in "
        f"{differences}. Use the head that was trained on this encoder's embeddings, or set "
        "params.allow_mismatched_head: true"
    )
    with pytest.raises(HeadError, match=re.escape(message)):
        find_mismatched_heads([head], other, "x.h5", are_allowed=False)
    assert find_mismatched_heads([head], other, "x.h5", are_allowed=True) == {"x": differences}
    assert find_mismatched_heads([head], {**encoder, "model": "/elsewhere"}, "x.h5", are_allowed=False) == {}


def test_a_head_may_name_the_weights_of_its_encoder_alone(tmp_path: Path) -> None:
    metadata = {"encoder_weights_sha256": "a" * 64}
    head = load_head("x", save_safetensors(mlp(DIM, 1).state_dict(), tmp_path / "x.safetensors", metadata))
    with pytest.raises(HeadError, match=r"trained on embeddings of an encoder with weights aaaaaaaaaaaa, but x\.h5"):
        find_mismatched_heads([head], {"weights_sha256": "b" * 64, "prompt": ""}, "x.h5", are_allowed=False)


@pytest.mark.parametrize("encoder", ["{", "[]", "x"])
def test_metadata_that_cannot_be_read_is_refused(tmp_path: Path, encoder: str) -> None:
    path = save_safetensors(mlp(DIM, 1).state_dict(), tmp_path / "x.safetensors", {"encoder": encoder})
    with pytest.raises(HeadError, match="its `encoder` is not a JSON object; save the head again"):
        load_head("x", path)


class Named(nn.Module):
    """Layers whose names do not show their order."""

    def __init__(self, n_hidden: int) -> None:
        super().__init__()
        self.input_proj = nn.Linear(DIM, DIM)
        self.hidden = nn.Linear(DIM, n_hidden)
        self.classifier = nn.Linear(n_hidden, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.hidden(self.input_proj(x).relu()).relu())


def test_layers_without_numbers_follow_one_another_as_they_are_defined(tmp_path: Path) -> None:
    module = Named(DIM)
    path = save_pt(module.state_dict(), tmp_path / "x.pt")
    (tmp_path / "x.pt.json").write_text('{"activation": "relu"}')
    head = load_head("x", path)
    np.testing.assert_allclose(score([head], EMBEDDINGS), forward(module), atol=1e-6)
    assert head.assumptions == (
        "layers in the order input_proj, hidden, classifier",
        "only relu between them",
        "nothing after classifier",
    )


def test_safetensors_forget_that_order_so_the_shapes_must_tell_it(tmp_path: Path) -> None:
    module, stated = Named(4), {"activation": "relu"}
    head = load_head("x", save_safetensors(module.state_dict(), tmp_path / "x.safetensors", stated))
    np.testing.assert_allclose(score([head], EMBEDDINGS), forward(module), atol=1e-6)
    with pytest.raises(HeadError, match=r"the order of the layers .* cannot be determined from their names and shapes"):
        load_head("x", save_safetensors(Named(DIM).state_dict(), tmp_path / "y.safetensors", stated))


def test_a_lightning_checkpoint_of_jql_is_read_without_lightning(tmp_path: Path) -> None:
    """A checkpoint like Jackal-AI/JQL-Edu-Heads: layer1, ReLU, layer2, with the state of the training."""
    module = nn.ModuleDict({"layer1": nn.Linear(DIM, 4), "layer2": nn.Linear(4, 1)})
    checkpoint = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": module.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"input_dim": DIM, "hidden_dim": 4, "learning_rate": 1e-3, "train_sets": ["a", "b"]},
    }
    head = load_head("edu", save_pt(checkpoint, tmp_path / "edu.ckpt"))
    expected = module["layer2"](module["layer1"](torch.from_numpy(EMBEDDINGS)).relu()).detach().numpy()
    np.testing.assert_allclose(score([head], EMBEDDINGS), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input_dim": 7}, "its settings say input_dim 7, its weights 6"),
        ({"hidden_dim": 5}, "its settings say hidden_dim 5, its weights 4"),
    ],
)
def test_weights_that_are_not_those_of_their_settings_are_refused(
    tmp_path: Path, settings: dict[str, int], message: str
) -> None:
    checkpoint = {"state_dict": mlp(DIM, 4, 1).state_dict(), "hyper_parameters": settings}
    with pytest.raises(HeadError, match=message):
        load_head("edu", save_pt(checkpoint, tmp_path / "edu.ckpt"))


def write_folder(folder: Path, config: Any, tensors: Tensors) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    save_safetensors(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


ML_FILTER = {"architectures": ["EmbeddingRegressionModel"], "embedding_dim": DIM, "hidden_dim": 4,
             "model_type": "", "num_tasks": 2, "num_targets_per_task": [6, 6]}  # fmt: skip


def test_a_folder_of_the_predecessor_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = mlp(DIM, 4, 2)
    tensors = {f"head.mlp.{key}": tensor for key, tensor in module.state_dict().items()}
    head = load_head("edu", write_folder(tmp_path / "head", ML_FILTER, tensors))
    np.testing.assert_allclose(score([head], EMBEDDINGS), forward(module), atol=1e-6)
    assert (head.task, head.labels) == ("regression", ())
    assert "names no activation" not in caplog.text


def test_a_folder_whose_weights_are_not_its_own_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "head", {**ML_FILTER, "num_tasks": 3}, mlp(DIM, 4, 2).state_dict())
    with pytest.raises(HeadError, match="its settings say num_tasks 3, its weights 2; download it again"):
        load_head("edu", folder)


@pytest.mark.parametrize("config", ["{", "[]", "\\udcff"])
def test_a_folder_whose_config_cannot_be_read_is_refused(tmp_path: Path, config: str) -> None:
    folder = write_folder(tmp_path / "head", "", mlp(DIM, 1).state_dict())
    (folder / "config.json").write_bytes(config.encode(errors="surrogateescape"))
    with pytest.raises(HeadError, match=r"config\.json next to it (cannot be read as JSON|is not a JSON object)"):
        load_head("edu", folder)


def test_a_sidecar_says_what_a_state_dict_does_not(tmp_path: Path) -> None:
    module = mlp(DIM, 4, 3, activation=nn.GELU)
    path = save_pt(module.state_dict(), tmp_path / "x.pt")
    plain, plain_sha256 = load_head("x", path), find_head("x", path).sha256
    facts = {"activation": "gelu", "task": "multiclass", "labels": ["a", "b", "c"], "encoder": {"prompt": "q: "}}
    (tmp_path / "x.pt.json").write_text(json.dumps(facts))
    head = load_head("x", path)
    np.testing.assert_allclose(score([head], EMBEDDINGS), forward(module), atol=1e-6)
    assert (head.task, head.labels, head.encoder) == ("multiclass", ("a", "b", "c"), {"prompt": "q: "})
    assert (plain.task, plain.labels) == ("regression", ())
    assert find_head("x", path).sha256 != plain_sha256, "the sidecar decides the scores as well"


@pytest.mark.parametrize(
    ("facts", "n_outputs", "message"),
    [
        ({"task": "ranking"}, 1, "unknown task 'ranking'; known: regression, binary, multiclass"),
        ({"task": "binary"}, 3, "task binary, but its last layer gives 3 values; correct task"),
        ({"task": "multiclass"}, 1, "task multiclass, but its last layer gives 1 values; correct task"),
        ({"labels": "ab"}, 2, "labels is ab, not a list of strings"),
        ({"labels": ["a"]}, 2, "1 different labels, but its last layer gives 2"),
        ({"labels": ["a", "a"]}, 2, "1 different labels, but its last layer gives 2"),
        ({"format": "mlfilter-head/2"}, 1, "has the format mlfilter-head/2; this version reads mlfilter-head/1"),
    ],
)
def test_facts_that_do_not_fit_the_weights_are_refused(
    tmp_path: Path, facts: dict[str, Any], n_outputs: int, message: str
) -> None:
    path = save_pt(mlp(DIM, n_outputs).state_dict(), tmp_path / "x.pt")
    (tmp_path / "x.pt.json").write_text(json.dumps(facts))
    with pytest.raises(HeadError, match=message):
        load_head("x", path)
