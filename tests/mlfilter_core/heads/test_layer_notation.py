"""Sidecars with `layers`, against the forward pass of the module that they describe."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mlfilter_core.errors import HeadError
from mlfilter_core.heads.checkpoint_formats import load_head
from mlfilter_core.heads.head import score
from tests.mlfilter_core.heads.saved_modules import DIM, INPUTS, L, check, randomised, save

SILU_NORM = ["linear", "silu", "layer_norm", "linear", "sigmoid"]


def sequence() -> nn.Module:
    return randomised(nn.Sequential(L(DIM, 4), nn.SiLU(), nn.LayerNorm(4), nn.Dropout(), L(4, 2), nn.Sigmoid()))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "layers", [SILU_NORM, ["0", "silu", "2", "4", "sigmoid"], ["0", "silu", "2", "linear", "sigmoid"]]
)
def test_layers_are_computed_as_they_are_written(tmp_path: Path, layers: list[Any], suffix: str) -> None:
    head = load_head("x", save(sequence(), tmp_path / f"x{suffix}", {"layers": layers}))
    check(head, sequence())
    assert head.assumptions == ("layer_norm with eps 1e-05",)


# Modules by the word for them; those with several words have tensors that can be either.
PIECES: dict[str, Callable[[int], nn.Module]] = {
    "layer_norm": nn.LayerNorm, "batch_norm": nn.BatchNorm1d, "rms_norm": nn.RMSNorm,
    "prelu": nn.PReLU, "gelu": lambda n: nn.GELU(), "silu": lambda n: nn.SiLU(), "tanh": lambda n: nn.Tanh(),
    "elu": lambda n: nn.ELU(), "relu": lambda n: nn.ReLU(), "mish": lambda n: nn.Mish(),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_any_chain_of_layers_can_be_written_by_names(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    width, modules, layers = DIM, [], []
    for _ in range(rng.randint(2, 5)):
        for kind in rng.sample(sorted(PIECES), rng.randint(0, 3)):
            has_weights = kind in ("layer_norm", "batch_norm", "rms_norm", "prelu")
            layers.append(f"{len(modules)}: {kind}" if has_weights else kind)
            modules.append(PIECES[kind](width))
        new = rng.randint(1, 9)
        layers.append(str(len(modules)))
        modules.append(L(width, new, bias=rng.random() < 0.5))
        width = new
    module = randomised(nn.Sequential(*modules), seed)
    facts = {"layers": layers}
    check(load_head("x", save(module, tmp_path / "x.safetensors", facts)), module)


def test_safetensors_may_state_the_layers_themselves(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    module = sequence()
    save_file(dict(module.state_dict()), tmp_path / "x.safetensors", {"layers": json.dumps(SILU_NORM), "eps": "1e-5"})
    check(load_head("x", tmp_path / "x.safetensors"), module)


def test_the_epsilon_of_norms_is_the_one_that_is_stated(tmp_path: Path) -> None:
    module = randomised(nn.Sequential(nn.LayerNorm(DIM, eps=0.1), nn.BatchNorm1d(DIM, eps=0.1), L(DIM, 1)))
    check(load_head("x", save(module, tmp_path / "x.pt", {"layers": ["0", "1", "2"], "eps": 0.1})), module)
    head = load_head("x", save(module, tmp_path / "x.pt", {"eps": 0.1}))
    check(head, module)
    assert head.assumptions == ("nothing after 2",)


def test_a_norm_may_state_its_own_epsilon(tmp_path: Path) -> None:
    norms = nn.LayerNorm(DIM, eps=0.1), nn.BatchNorm1d(DIM, eps=0.2), nn.RMSNorm(DIM, eps=0.3)
    module = randomised(nn.Sequential(*norms, nn.LayerNorm(DIM, 0.4, elementwise_affine=False), L(DIM, 1)))
    layers = ["0 eps=0.1", "batch_norm eps=2e-1", "2: rms_norm eps=0.3", "layer_norm eps=0.4", "4"]
    head = load_head("x", save(module, tmp_path / "x.pt", {"layers": layers}))
    check(head, module)
    assert head.assumptions == ()
    head = load_head("x", save(module, tmp_path / "x.pt", {"layers": ["0", *layers[1:]], "eps": 0.1}))
    check(head, module)
    assert head.assumptions == ()


def test_an_epsilon_that_is_not_stated_is_the_default_of_its_module_and_said(tmp_path: Path) -> None:
    """Small inputs, whose variance is near the epsilons."""
    module = randomised(nn.Sequential(nn.RMSNorm(DIM), L(DIM, 4), nn.BatchNorm1d(4), nn.LayerNorm(4), L(4, 1)))
    layers = ["0: rms_norm", "1", "2", "3", "4"]
    head = load_head("x", save(module, tmp_path / "x.pt", {"layers": layers}))
    inputs = INPUTS * 1e-3
    with torch.inference_mode():
        np.testing.assert_allclose(score([head], inputs.numpy()), module(inputs).numpy(), rtol=1e-4, atol=1e-5)
    assert head.assumptions == (
        "batch_norm with eps 1e-05",
        "layer_norm with eps 1e-05",
        "rms_norm with eps 1.1920929e-07",
    )


def test_a_norm_without_weights_leaves_none_in_the_file(tmp_path: Path) -> None:
    module = randomised(nn.Sequential(nn.LayerNorm(DIM, elementwise_affine=False), L(DIM, 1)))
    check(load_head("x", save(module, tmp_path / "x.pt", {"layers": ["layer_norm", "1"]})), module)


def test_names_may_be_given_in_full(tmp_path: Path) -> None:
    module = randomised(nn.ModuleDict({"net": nn.ModuleDict({"b": L(DIM, 4), "a": L(4, 1)})}))
    path = save(module, tmp_path / "x.safetensors", {"layers": ["net.b", "tanh", "net.a"]})
    inner = module["net"]
    check(load_head("x", path), nn.Sequential(inner["b"], nn.Tanh(), inner["a"]))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"layers": ["0", "silu", "2"]}, r"layers leaves out 4 \(linear, 4 to 2\); write every module of the file"),
        ({"layers": ["0", "0", "2", "4"]}, "layers has '0', which is used twice, or not of that kind"),
        ({"layers": ["0", "swish", "2", "4"]}, r"'swish', which is neither a module that is left .* nor an activation"),
        ({"layers": ["0", "fc", "2", "4"]}, "'fc', which is neither a module that is left"),
        ({"layers": ["4", "0", "2"]}, r"0\.weight takes 8 values, but the layer before it gives 2"),
        ({"layers": ["0", "4", "2"]}, r"2\.weight takes 4 values, but the layer before it gives 2"),
        ({"layers": ["0", "2: prelu", "4"]}, r"2 \(layer_norm, 4\) is not a prelu; correct layers"),
        ({"layers": ["linear", "linear", "linear", "layer_norm"]}, "'linear', which is neither a module that is left"),
        ({"layers": ["0", 3, "2", "4"]}, "layers has 3, which is neither a text nor a list"),
        ({"layers": ["0", [["relu"], ["2"]], "4"]}, r"x\.pt: \['relu'\] has no linear layer; correct layers"),
        ({"layers": ["2"]}, r"x\.pt: \['2'\] has no linear layer; correct layers"),
        ({"layers": [[["0"], ["2"], ["4"]]]}, "chains side by side take 4 and 8 values; correct layers"),
        ({"layers": [[["0"], ["4"]]]}, "chains side by side take 4 and 8 values; correct layers"),
        ({"layers": []}, r"layers has \[\], not a list such as"),
        ({"layers": "relu"}, "layers is 'relu', not a list such as"),
        ({"layers": {"0": "relu"}}, "layers is .*, not a list such as"),
        ({"layers": ["0", "2", "4"], "activation": "relu"}, "both layers and activation are stated; leave out activ"),
        ({"layers": SILU_NORM, "task": "binary"}, "task binary applies its own sigmoid, and layers ends with sigmoid"),
        ({"layers": SILU_NORM, "task": "multilabel"}, "task multilabel applies its own sigmoid, and layers ends with"),
        ({"layers": ["0", "2", "4"], "eps": "small"}, "eps is 'small', not a number between 0 and 1"),
        ({"layers": ["0", "2", "4"], "eps": -1}, "eps is -1, not a number between 0 and 1"),
        ({"layers": ["0", "2 eps=x", "4"]}, "eps is 'x', not a number between 0 and 1"),
        ({"layers": ["0", "2", "4 eps=1e-5"]}, r"4 \(linear, 4 to 2\) has no eps, only norms do; correct layers"),
        ({"layers": ["0", "2", "4"], "labels": ["a"]}, "1 different labels, but its last layer gives 2"),
        ({"layers": ["0", "2", "4"], "labels": ["a", " "]}, "labels has an empty name; name every output"),
    ],
)
def test_a_sidecar_that_contradicts_the_weights_is_refused(tmp_path: Path, facts: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadError, match=message):
        load_head("x", save(sequence(), tmp_path / "x.pt", facts))


def test_kinds_need_an_order_that_safetensors_forget(tmp_path: Path) -> None:
    module = nn.ModuleDict({"b": L(DIM, 4), "a": L(4, 1)})
    path = save(module, tmp_path / "x.safetensors", {"layers": ["linear", "relu", "linear"]})
    with pytest.raises(HeadError, match=r"does not tell which linear is next in layers; write one of a .* by its name"):
        load_head("x", path)
    check(
        load_head("x", save(module, tmp_path / "x.pt", {"layers": ["linear", "relu", "linear"]})),
        nn.Sequential(module["b"], nn.ReLU(), module["a"]),
    )


def test_a_vector_that_can_be_several_layers_is_named_with_its_kind(tmp_path: Path) -> None:
    module = randomised(nn.Sequential(L(DIM, 4), nn.PReLU(4), L(4, 1)))
    with pytest.raises(HeadError, match=r"write it as '1: prelu' or '1: layer_norm' or '1: rms_norm' in layers"):
        load_head("x", save(module, tmp_path / "x.pt", {"layers": ["0", "1", "2"]}))
    for layers in (["0", "1: prelu", "2"], ["0", "prelu", "2"], ["linear", "prelu", "linear"]):
        check(load_head("x", save(module, tmp_path / "x.pt", {"layers": layers})), module)


def test_fields_without_a_meaning_are_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_head("x", save(L(DIM, 1), tmp_path / "x.pt", {"activaton": "gelu"}))
    assert "x.pt.json has fields without a meaning: activaton; known: layers, activation, " in caplog.text


def test_nesting_has_a_limit(tmp_path: Path) -> None:
    layers: list[Any] = ["0"]
    for _ in range(50):
        layers = [[layers]]
    with pytest.raises(HeadError, match="not a list such as"):
        load_head("x", save(L(DIM, 1), tmp_path / "x.pt", {"layers": layers}))


def test_an_empty_tensor_of_a_norm_is_refused(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.ones(0), "0.bias": torch.ones(0), "1.weight": torch.ones(1, 3)}, tmp_path / "x.pt")
    with pytest.raises(HeadError, match=r"0\.weight is empty"):
        load_head("x", tmp_path / "x.pt")


@pytest.mark.parametrize("kind", ["standardize", "batch_norm"])
def test_a_mean_far_from_zero_costs_no_digits(tmp_path: Path, kind: str) -> None:
    """A mean of 1e4 and a deviation of 1, compared with float64."""
    weight = torch.linspace(-1, 1, DIM).reshape(1, DIM)
    mean, std = torch.linspace(-1e4, 1e4, DIM), torch.ones(DIM)
    names = {"standardize": ("mean", "std"), "batch_norm": ("running_mean", "running_var")}[kind]
    own = dict(zip((f"norm.{name}" for name in names), (mean, std), strict=True))
    torch.save({**own, "fc.weight": weight}, tmp_path / "x.pt")
    (tmp_path / "x.pt.json").write_text(json.dumps({"layers": [kind, "linear"], "eps": 0}))
    inputs = mean + INPUTS
    expected = ((inputs.double() - mean.double()) @ weight.double().T).numpy()
    scores = score([load_head("x", tmp_path / "x.pt")], inputs.numpy())
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_last", [True, False])
def test_a_chain_beside_others_may_be_a_norm_alone(tmp_path: Path, is_last: bool) -> None:
    norm, fc, out = randomised(nn.LayerNorm(DIM)), randomised(L(DIM, 2)), randomised(L(DIM + 2, 1))
    chains = [["fc", "tanh"], ["norm"]] if is_last else [["norm"], ["fc", "tanh"]]
    module = nn.ModuleDict({"norm": norm, "fc": fc, "out": out})
    head = load_head("x", save(module, tmp_path / "x.pt", {"layers": [chains, "out"]}))
    with torch.inference_mode():
        parts = [torch.tanh(fc(INPUTS)), norm(INPUTS)]
        expected = out(torch.cat(parts if is_last else parts[::-1], 1)).numpy()
    np.testing.assert_allclose(score([head], INPUTS.numpy()), expected, atol=1e-5)
    assert head.widths == (DIM, DIM + 2, 1)
