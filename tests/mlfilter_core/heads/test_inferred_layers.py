"""Real torch modules as files, against their own forward pass."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mlfilter_core.errors import HeadError
from mlfilter_core.heads.checkpoint_formats import load_head
from tests.mlfilter_core.heads.saved_modules import DIM, L, check, randomised, save

SEQUENCES: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "mlp": (lambda: nn.Sequential(L(DIM, 4), nn.ReLU(), L(4, 1)), ("relu between 0 and 2", "nothing after 2")),
    "dropout": (
        lambda: nn.Sequential(nn.Dropout(), L(DIM, 4), nn.ReLU(), nn.Dropout(), L(4, 1)),
        ("nothing before 1", "relu between 1 and 4", "nothing after 4"),
    ),
    "two linear layers": (
        lambda: nn.Sequential(L(DIM, 4), L(4, 1)),
        ("no activation between 0 and 1", "nothing after 1"),
    ),
    "norm first": (
        lambda: nn.Sequential(nn.LayerNorm(DIM), L(DIM, 4), nn.ReLU(), L(4, 1)),
        ("relu between 1 and 3", "nothing after 3", "layer_norm with eps 1e-05"),
    ),
    "norm after": (
        lambda: nn.Sequential(L(DIM, 4), nn.LayerNorm(4), nn.ReLU(), nn.Dropout(), L(4, 2)),
        ("relu between 1 and 4", "nothing after 4", "layer_norm with eps 1e-05"),
    ),
    "batch norm": (
        lambda: nn.Sequential(L(DIM, 4), nn.BatchNorm1d(4), nn.ReLU(), L(4, 2)),
        ("relu between 1 and 3", "nothing after 3", "batch_norm with eps 1e-05"),
    ),
    "norm behind the activation": (
        lambda: nn.Sequential(L(DIM, 4, bias=False), nn.ReLU(), nn.BatchNorm1d(4), L(4, 2)),
        ("relu between 0 and 2", "nothing after 3", "batch_norm with eps 1e-05"),
    ),
    "plain batch norm": (
        lambda: nn.Sequential(nn.BatchNorm1d(DIM, affine=False), L(DIM, 1)),
        ("nothing after 1", "batch_norm with eps 1e-05"),
    ),
    "prelu": (
        lambda: nn.Sequential(L(DIM, 4), nn.PReLU(), nn.Dropout(), L(4, 1)),
        ("nothing after 3",),
    ),
    "one": (lambda: nn.Sequential(L(DIM, 3)), ("nothing after 0",)),
    "bare": (lambda: L(DIM, 3), ()),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_is_read_from_its_numbers_and_what_is_assumed_is_said(
    tmp_path: Path, name: str, suffix: str
) -> None:
    make, assumptions = SEQUENCES[name]
    module = randomised(make())
    head = load_head("x", save(module, tmp_path / f"x{suffix}"))
    check(head, module)
    assert head.assumptions == assumptions


@pytest.mark.parametrize("seed", range(30))
def test_random_sequences_are_computed_exactly_or_refused(tmp_path: Path, seed: int) -> None:
    """With ReLU as the only activation, every guess that is made must be right."""
    rng = random.Random(seed)
    width, pieces = DIM, []
    for _ in range(rng.randint(1, 3)):
        new = rng.choice([3, 4, 5, DIM])
        middle = [rng.choice([[nn.ReLU()], [nn.ReLU(), nn.Dropout()], [nn.PReLU()], []]),
                  rng.choice([[], [], [nn.LayerNorm(new)], [nn.BatchNorm1d(new)]])]  # fmt: skip
        rng.shuffle(middle)
        pieces += [L(width, new, bias=rng.random() < 0.7), *middle[0], *middle[1]]
        width = new
    module = randomised(nn.Sequential(*rng.choice([[], [nn.LayerNorm(DIM)]]), *pieces, L(width, 2)), seed)
    try:
        head = load_head("x", save(module, tmp_path / "x.pt"))
    except HeadError as error:
        assert "in order in" in str(error)
        return
    check(head, module)


class Plain(nn.Module):
    def __init__(self, hidden: int = 4) -> None:
        super().__init__()
        self.fc1, self.fc2 = L(DIM, hidden), L(hidden, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.nn.functional.gelu(self.fc1(x)))


class Gated(nn.Module):
    def __init__(self, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> None:
        super().__init__()
        for name, layer in zip(names, (L(DIM, DIM), L(DIM, DIM), L(DIM, 1)), strict=True):
            self.add_module(name, layer)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = L(DIM, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.linear(x))


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.edu, self.toxic = L(DIM, 4), L(4, 1), L(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.shared(x))
        return torch.cat([self.edu(hidden), self.toxic(hidden)], 1)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([L(DIM, 4), L(4, 1)])


AMBIGUOUS: dict[str, tuple[Callable[[], nn.Module], str, list[Any] | None]] = {
    "names": (Plain, "do not tell which activations stand between them", ["fc1", "relu", "fc2"]),
    "gated": (Gated, "gate_proj.weight is named like a part of a gated or residual block", None),
    "w1 w2 w3": (lambda: Gated(("w1", "w2", "w3")), "w1, w2 and w3 are the names of a gated block", None),
    "skip": (lambda: Gated(("fc", "skip", "out")), "skip.weight is named like a part of a gated or residual", None),
    "blocks": (lambda: nn.Sequential(Block(), Block(), L(DIM, 1)), "do not tell which activations", None),
    "a list of modules": (Layers, "layers.0 and layers.1 can have an activation between them or none",
                          ["0", "relu", "1"]),
    "trunk": (Trunk, "do not tell which activations", ["shared", "relu", [["edu"], ["toxic"]]]),
    "two gaps": (
        lambda: nn.Sequential(L(DIM, 4), nn.ReLU(), nn.LayerNorm(4), nn.Dropout(), L(4, 1)),
        "what stood between 0 and 2 and between 2 and 4 can be an activation or a dropout",
        ["0", "2", "relu", "4"],
    ),
    "norm or slope": (
        lambda: nn.Sequential(L(DIM, 4), nn.LayerNorm(4, bias=False), nn.ReLU(), L(4, 1)),
        r"1 \(prelu or layer_norm or rms_norm, 4\) can be several layers",
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_the_weights_cannot_tell_is_refused_with_the_sidecar_to_write(tmp_path: Path, name: str) -> None:
    make, message, proposal = AMBIGUOUS[name]
    path = save(randomised(make()), tmp_path / "x.pt")
    with pytest.raises(HeadError, match=message) as caught:
        load_head("x", path)
    assert f"in order in {path}.json, such as " in str(caught.value)
    if proposal is not None:
        assert json.dumps({"layers": proposal}) in str(caught.value)


@pytest.mark.parametrize("name", ["names", "a list of modules", "trunk", "two gaps"])
def test_the_proposed_sidecar_can_be_pasted(tmp_path: Path, name: str) -> None:
    path = save(randomised(AMBIGUOUS[name][0]()), tmp_path / "x.pt")
    with pytest.raises(HeadError) as caught:
        load_head("x", path)
    proposal = re.search(r'\{"layers".*?\}', str(caught.value))
    assert proposal
    path.with_name("x.pt.json").write_text(proposal[0])
    assert load_head("x", path).assumptions == (("layer_norm with eps 1e-05",) if name == "two gaps" else ())


def test_a_trunk_with_two_heads_is_computed_as_it_is_written(tmp_path: Path) -> None:
    module = randomised(Trunk())
    facts = {"layers": ["shared", "relu", [["edu"], ["toxic"]]], "labels": ["edu", "toxic"]}
    head = load_head("x", save(module, tmp_path / "x.safetensors", facts))
    check(head, module)
    assert head.labels == ("edu", "toxic")


class SideBySide(nn.Module):
    def __init__(self, **chains: nn.Module) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(chains)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([chain(x) for chain in self.heads.values()], 1)


@pytest.mark.parametrize(
    ("chains", "labels"),
    [
        ({"edu": lambda: L(DIM, 1), "toxic": lambda: L(DIM, 1)}, ("edu", "toxic")),
        ({"edu": lambda: L(DIM, 1), "kind": lambda: L(DIM, 2)}, ("edu", "kind_0", "kind_1")),
        ({"edu": lambda: nn.Sequential(L(DIM, 4), nn.ReLU(), L(4, 1)), "toxic": lambda: L(DIM, 1)}, ("edu", "toxic")),
        (
            {key: lambda: nn.Sequential(nn.LayerNorm(DIM), L(DIM, 4), nn.ReLU(), L(4, 1)) for key in ("a", "b")},
            ("a", "b"),
        ),
    ],
)
def test_heads_side_by_side_in_one_file_give_their_outputs_by_name(
    tmp_path: Path, chains: dict[str, Callable[[], nn.Module]], labels: tuple[str, ...]
) -> None:
    module = randomised(SideBySide(**{name: make() for name, make in chains.items()}))
    head = load_head("x", save(module, tmp_path / "x.pt"))
    check(head, module)
    assert head.labels == labels
    assert head.assumptions[0] == f"{', '.join(chains)} side by side"


def mlp() -> nn.Module:
    return nn.Sequential(L(DIM, 4), nn.ReLU(), L(4, 1))


COPY = r"{0} and {1} have the same shapes, and {1} is named like a copy or a weight .* Save the weights of the one"


@pytest.mark.parametrize(
    ("chains", "message"),
    [
        ({"model": mlp, "ema_model": mlp}, COPY.format("model", "ema_model")),
        ({"emaNet": mlp, "net": mlp}, COPY.format("net", "emaNet")),
        ({"student": mlp, "teacher": mlp}, COPY.format("teacher", "student")),
        ({"best_head": lambda: L(DIM, 1), "last": lambda: L(DIM, 1)}, COPY.format("last", "best_head")),
        ({"score": lambda: L(DIM, 1), "weighting": lambda: L(DIM, 1)}, COPY.format("score", "weighting")),
        (
            {"0": lambda: L(DIM, 1), "1": lambda: L(DIM, 1)},
            "0, 1 all take the embedding, and 0 does not name an output",
        ),
        ({"edu": lambda: L(DIM, 1), "fc1": lambda: L(DIM, 2)}, "edu, fc1 all take .* and fc1 does not name an output"),
    ],
)
def test_what_can_be_a_copy_a_gate_or_nameless_is_not_a_head_of_its_own(
    tmp_path: Path, chains: dict[str, Callable[[], nn.Module]], message: str
) -> None:
    module = randomised(SideBySide(**{name: make() for name, make in chains.items()}))
    path = save(module, tmp_path / "x.pt")
    with pytest.raises(HeadError, match=message) as caught:
        load_head("x", path)
    proposal = re.search(r'\{"layers".*?\}', str(caught.value))
    assert proposal
    path.with_name("x.pt.json").write_text(proposal[0])
    check(load_head("x", path), module)


def test_targets_with_one_word_in_common_are_heads_and_no_copies(tmp_path: Path) -> None:
    module = randomised(SideBySide(target_edu=L(DIM, 1), target_toxic=L(DIM, 1)))
    assert load_head("x", save(module, tmp_path / "x.pt")).labels == ("target_edu", "target_toxic")


class Scaled(nn.Module):
    """Standardised embeddings, or outputs on another scale."""

    def __init__(self, mean: str, std: str, n: int, n_outputs: int = 1) -> None:
        super().__init__()
        self.fc = L(DIM, n_outputs)
        self.register_buffer(mean, torch.zeros(n))
        self.register_buffer(std, torch.ones(n))
        self.names, self.is_input = (mean, std), n == DIM

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = (getattr(self, name) for name in self.names)
        return self.fc((x - mean) / std) if self.is_input else self.fc(x) * std + mean


@pytest.mark.parametrize(("mean", "std"), [("mean", "std"), ("x_mean", "x_std"), ("mean_", "scale_"), ("mu", "sigma")])
@pytest.mark.parametrize("n", [DIM, 1])
def test_standardisation_is_applied_where_its_width_fits(tmp_path: Path, mean: str, std: str, n: int) -> None:
    module = randomised(Scaled(mean, std, n))
    with torch.no_grad():
        getattr(module, std).abs_().add_(0.5)
    head = load_head("x", save(module, tmp_path / "x.pt"))
    check(head, module)
    assert head.assumptions == (f"{mean} {'standardizes the embeddings' if n == DIM else 'scales the outputs back'}",)


def test_standardisation_that_fits_both_ends_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        HeadError, match=r"mean \(standardize or unstandardize, 8\) can scale the embeddings or the out"
    ):
        load_head("x", save(Scaled("mean", "std", DIM, DIM), tmp_path / "x.pt"))


def test_a_deviation_of_zero_is_refused(tmp_path: Path) -> None:
    module = Scaled("mean", "std", DIM)
    module.std.zero_()
    with pytest.raises(HeadError, match="divides by zero; correct its standard deviations"):
        load_head("x", save(module, tmp_path / "x.pt"))


def test_an_activation_that_is_stated_stands_in_the_gaps_and_all_else_is_assumed(tmp_path: Path) -> None:
    module = randomised(nn.Sequential(L(DIM, 4), nn.LayerNorm(4), nn.SiLU(), nn.Dropout(), L(4, 3), nn.SiLU(), L(3, 1)))
    head = load_head("x", save(module, tmp_path / "x.pt", {"activation": "silu"}))
    check(head, module)
    assert head.assumptions == (
        "only silu between 1 and 4",
        "only silu between 4 and 6",
        "nothing after 6",
        "layer_norm with eps 1e-05",
    )


@pytest.mark.parametrize(("names", "said"), [(("fc1", "fc2"), "layers in the order fc1, fc2"), (("0", "1"), None)])
def test_an_activation_alone_does_not_tell_what_follows_the_last_layer(
    tmp_path: Path, names: tuple[str, str], said: str | None
) -> None:
    module = randomised(nn.ModuleDict(dict(zip(names, (L(DIM, 4), L(4, 1)), strict=True))))
    head = load_head("x", save(module, tmp_path / "x.pt", {"activation": "silu"}))
    check(head, nn.Sequential(module[names[0]], nn.SiLU(), module[names[1]]))
    assert head.assumptions == (*([said] if said else []), "only silu between them", f"nothing after {names[1]}")


def test_assumptions_are_logged_once_in_a_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(nn.Sequential(L(DIM, 4), nn.ReLU(), L(4, 1)), tmp_path / "x.pt")
    for _ in range(3):
        load_head("x", path)
    message = f"head x: {path} does not state all of its layers; assumed: relu between 0 and 2; nothing after 2"
    assert caplog.messages == [message]
