"""What the names, numbers and shapes of a checkpoint's modules tell of its layers, in the notation for layers.

What they cannot tell is refused, with the notation to write. What they nearly tell is assumed, and named.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from pathlib import Path

from mlfilter_core.compute.linear import ACTIVATIONS
from mlfilter_core.errors import HeadError
from mlfilter_core.heads.modules import (
    LINEAR,
    PRELU,
    STANDARDIZE,
    UNSTANDARDIZE,
    Module,
    Modules,
)

MAX_UNNUMBERED_LAYERS = 6  # few enough to try all 720 orders
USUAL = "relu"  # where something stood between two linear layers
# Words in names of modules that do not follow one another: gated and residual blocks, attention, recurrence.
NOT_A_CHAIN = {
    *("gate", "gates", "gated", "gating", "glu", "geglu", "reglu", "swiglu", "up", "down", "downsample", "upsample"),
    *("res", "resid", "residual", "residuals", "resblock", "resblocks", "skip", "skips", "shortcut", "shortcuts"),
    *("highway", "attn", "attention", "moe", "expert", "experts", "router", "lora", "conv", "conv1d", "lstm", "gru"),
    *("rnn", "query", "key", "value", "qkv"),
}
GATED_TRIPLE = {"w1", "w2", "w3"}  # of Llama's feed-forward layers: w2(silu(w1 x) * w3 x)
# Words in names of a second set of the same weights, or of weights of a sum: their outputs are no scores of their own.
COPIES = {
    *("ema", "avg", "average", "averaged", "swa", "target", "teacher", "student", "best", "train", "shadow"),
    *("momentum", "online", "weighting", "weightings"),
}
# Words in names of modules that say nothing about their outputs.
NO_LABELS = {
    *("fc", "lin", "linear", "layer", "layers", "dense", "proj", "projection", "out", "output", "outputs", "mlp"),
    *("head", "heads", "branch", "branches", "model", "models", "module", "net", "network", "seq", "sequential"),
}


@dataclass(frozen=True)
class Inferred:
    """Layers that the checkpoint tells, or nearly tells.

    Attributes:
        notation: The layers.
        assumptions: What it does not tell, in words.
        names: Name of each output where chains stand side by side; empty otherwise.
    """

    notation: list[object]
    assumptions: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


def infer_layers(modules: Modules, activation: str | None, is_plain: bool, place: Path, where: str) -> Inferred:
    """Returns the layers of a checkpoint that does not state them.

    Args:
        modules: Modules of the checkpoint.
        activation: Activation that the checkpoint states, or None.
        is_plain: Whether its format is known to be linear layers with the activation, or ReLU, between them.
        place: File to write what the checkpoint does not tell.
        where: The checkpoint, for messages.

    Raises:
        HeadError: The modules can be several heads.
    """
    refusal = _Refusal(modules, activation, place, where)
    if is_plain:
        return Inferred(_interleaved(_chain(modules, refusal), activation or USUAL))
    for module in modules.found:
        if set(re.split(r"[^a-z0-9]+|_", module.shown.lower())) & NOT_A_CHAIN:
            raise refusal.because(
                f"{module.shown} is named like a part of a gated or residual block, which is not a chain of layers",
                "If it is a chain, write its layers in order",
            )
    if {module.name.rpartition(".")[2] for module in modules.found} >= GATED_TRIPLE:
        raise refusal.because(
            "w1, w2 and w3 are the names of a gated block, which is not a chain of layers",
            "If it is a chain, write its layers in order",
        )
    scales = [module for module in modules.found if STANDARDIZE in module.kinds]
    others = tuple(module for module in modules.found if STANDARDIZE not in module.kinds)
    inferred = _infer(Modules(others, modules.are_in_order, modules.prefix), activation, refusal)
    for module in scales:
        inferred = _with_standardisation(inferred, module, others, refusal)
    return inferred


def _infer(modules: Modules, activation: str | None, refusal: "_Refusal") -> Inferred:
    found = modules.found
    if len(found) == 1:
        return Inferred([_entry(found[0])], (*_before_the_first(found[0]), *_after_the_last(found[0])))
    linear = [module for module in found if module.kinds == (LINEAR,)]
    side_by_side = _side_by_side(modules, activation, refusal)
    if side_by_side is not None:
        return side_by_side
    is_all_linear = len(linear) == len(found)
    if all(module.name.isdigit() for module in found):
        has_gaps = any(_gap(before, after) for before, after in pairwise(found))
        if is_all_linear and activation is not None and not has_gaps:
            return Inferred(_interleaved(_chain(modules, refusal), activation), _with_only(activation, found))
        if has_gaps or not modules.prefix:
            return _in_sequence(found, activation, refusal)
        raise refusal.because(
            f"{modules.prefix}.{found[0].name} and {modules.prefix}.{found[1].name} can have an activation between "
            "them or none",
            "Write the layers in order",
        )
    if is_all_linear and activation is not None:
        chain = _chain(modules, refusal)
        order = ", ".join(module.name for module in chain)
        assumptions = (f"layers in the order {order}", *_with_only(activation, chain))
        return Inferred(_interleaved(chain, activation), assumptions)
    if len(linear) == 1 and len(found) == 2:
        norm = next(module for module in found if module not in linear)
        if norm.n_out == linear[0].n_in != linear[0].n_out and len(norm.kinds) == 1 and norm.kinds != (PRELU,):
            return Inferred([norm.name, linear[0].name], (f"{norm.name} before {linear[0].name}",))
    raise refusal.because(
        f"its modules {', '.join(map(str, found))} do not tell which activations stand between them",
        "Write the layers in order",
    )


def _in_sequence(found: Sequence[Module], activation: str | None, refusal: "_Refusal") -> Inferred:
    """Returns the layers of a torch.nn.Sequential: a gap between the numbers of two linear layers is an activation."""
    notation: list[object] = []
    assumptions: list[str] = [*_before_the_first(found[0])]
    gaps: list[tuple[int, str]] = []  # since the last linear layer: place in the notation, and its neighbours
    last: Module | None = None
    has_prelu = False
    for before, module in zip((None, *found), found, strict=False):
        if before is not None and _gap(before, module):
            gaps.append((len(notation), f"between {before.name} and {module.name}"))
        if len(module.kinds) > 1:
            raise refusal.because(f"{module} can be several layers", "Write the layers in order")
        has_prelu |= module.kinds == (PRELU,)
        if module.kinds == (LINEAR,):
            is_clear = not gaps or (last is not None and (len(gaps) == 1 or has_prelu))
            if not is_clear:
                raise refusal.because(
                    f"what stood {' and '.join(place for _, place in gaps)} can be an activation or a dropout",
                    "Write the layers in order",
                )
            if gaps and not has_prelu:
                notation.insert(gaps[0][0], activation or USUAL)
                assumptions.append(f"only {activation} {gaps[0][1]}" if activation else f"{USUAL} {gaps[0][1]}")
            elif last is not None and not has_prelu:
                assumptions.append(f"no activation between {last.name} and {module.name}")
            gaps, last, has_prelu = [], module, False
        notation.append(_entry(module))
    if gaps:
        raise refusal.because(f"what stood {gaps[0][1]} can be an activation or a dropout", "Write the layers in order")
    return Inferred(notation, (*assumptions, *_after_the_last(found[-1])))


def _with_only(activation: str, chain: Sequence[Module]) -> tuple[str, ...]:
    """Returns what is assumed about linear layers of which only the activation is stated."""
    return (f"only {activation} between them", f"nothing after {chain[-1].name}")


def _before_the_first(module: Module) -> tuple[str, ...]:
    return (f"nothing before {module.name}",) if module.name.isdigit() and module.name.strip("0") else ()


def _after_the_last(module: Module) -> tuple[str, ...]:
    return (f"nothing after {module.name}",) if module.name.isdigit() else ()


def _gap(before: Module, after: Module) -> bool:
    numbers = [module.name.lstrip("0") or "0" for module in (before, after)]
    return max(map(len, numbers)) > 18 or int(numbers[1]) != int(numbers[0]) + 1


def _side_by_side(modules: Modules, activation: str | None, refusal: "_Refusal") -> Inferred | None:
    """Returns heads for the same embeddings, `edu.weight` and `toxic.weight`; None if modules can follow one another.

    Each can be a chain of its own with numbered layers: `edu.0`, `edu.2`, `toxic.0`, `toxic.2`.
    """
    groups: dict[str, list[Module]] = {}
    for module in modules.found:
        groups.setdefault(module.name.split(".")[0], []).append(module)
    own = [[module for module in group if module.kinds == (LINEAR,)] for group in groups.values()]
    if len(groups) < 2 or not all(own):
        return None
    if all(name.isdigit() for name in groups) and list(groups) != list(map(str, range(len(groups)))):
        return None  # a torch.nn.ModuleList has no gaps
    n_in = {linear[0].n_in for linear in own}
    if len(n_in) > 1 or n_in & {linear[-1].n_out for linear in own}:
        return None
    if any(len(group) > 1 and not all(_last_part(module).isdigit() for module in group) for group in groups.values()):
        return None
    chains, assumptions, names = [], [], []
    for name, group in groups.items():
        short = tuple(Module(_last_part(module), module.kinds, module.tensors, module.shown) for module in group)
        prefix = "" if len(group) > 1 else name
        inferred = _infer(Modules(short, True, prefix), activation, refusal) if len(group) > 1 else None
        chains.append(_renamed(inferred.notation, short, group) if inferred else [group[0].name])
        assumptions += [f"{name}: {said}" for said in inferred.assumptions] if inferred else []
        n_out = [module for module in group if module.kinds == (LINEAR,)][-1].n_out
        names += [name] if n_out == 1 else [f"{name}_{i}" for i in range(n_out)]
    _check_are_heads(groups, [chains], refusal)
    return Inferred([chains], (f"{', '.join(groups)} side by side", *assumptions), tuple(names))


def _check_are_heads(groups: Mapping[str, Sequence[Module]], notation: list[object], refusal: "_Refusal") -> None:
    """Checks that groups of modules for the same values are heads with names, not copies or gates of one head.

    Raises:
        HeadError: They can be something else.
    """
    for one, other in permutations(groups, 2):
        shapes = [[tensor.shape for part in groups[name] for tensor in part.tensors.values()] for name in (one, other)]
        words = (_words(groups[one][0].shown) - _words(groups[other][0].shown)) & COPIES
        if words and shapes[0] == shapes[1]:
            raise refusal.because(
                f"{other} and {one} have the same shapes, and {one} is named like a copy or a weight of another head",
                "Save the weights of the one that scores, alone. If they stand side by side, write the layers in order",
                notation,
            )
    unlabelled = [name for name in groups if not _words(name) - NO_LABELS]
    if unlabelled:
        raise refusal.because(
            f"{', '.join(groups)} all take the embedding, and {unlabelled[0]} does not name an output",
            "If they stand side by side, write labels, and the layers in order",
            notation,
        )


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


def _renamed(notation: Sequence[object], short: Sequence[Module], group: Sequence[Module]) -> list[object]:
    names = {inner.name: outer.name for inner, outer in zip(short, group, strict=True)}
    return [names.get(str(entry), entry) for entry in notation]


def _last_part(module: Module) -> str:
    return module.name.rpartition(".")[2]


def _with_standardisation(
    inferred: Inferred, module: Module, others: Sequence[Module], refusal: "_Refusal"
) -> Inferred:
    """Returns the layers with standardised embeddings, or with outputs on their original scale, as the width tells."""
    linear = [other for other in others if other.kinds == (LINEAR,)]
    is_input = module.n_out in {other.n_in for other in linear[:1]}
    is_output = module.n_out == sum(other.n_out for other in linear[-1:])
    if inferred.names or is_input == is_output:
        raise refusal.because(f"{module} can scale the embeddings or the outputs", "Write the layers in order")
    kind = STANDARDIZE if is_input else UNSTANDARDIZE
    entry = f"{module.name}: {kind}"
    said = f"{module.name} {'standardizes the embeddings' if is_input else 'scales the outputs back'}"
    notation = [entry, *inferred.notation] if is_input else [*inferred.notation, entry]
    return Inferred(notation, (*inferred.assumptions, said), inferred.names)


def _chain(modules: Modules, refusal: "_Refusal") -> tuple[Module, ...]:
    """Returns linear layers in the order in which they are applied.

    That is the order of their numbers, else the order of definition. safetensors sorts tensors by name, so there the
    shapes must leave only one order.
    """
    if modules.are_in_order:
        for before, after in pairwise(modules.found):
            if after.n_in != before.n_out:
                raise HeadError(
                    f"{refusal.where}: {after.shown} takes {after.n_in} values, but the layer before it gives "
                    f"{before.n_out}"
                )
        return modules.found
    orders = _orders(modules.found)
    if len(orders) != 1:
        raise HeadError(
            f"{refusal.where}: the order of the layers {', '.join(module.shown for module in modules.found)} cannot be "
            f"determined from their names and shapes; {refusal.advice('Write the layers in order')}"
        )
    return orders[0]


def _orders(found: Sequence[Module]) -> list[tuple[Module, ...]]:
    """Returns the orders in which each module takes what the one before it gives."""
    orders = permutations(found) if len(found) <= MAX_UNNUMBERED_LAYERS else ()
    return [order for order in orders if all(a.n_out == b.n_in for a, b in pairwise(order))]


def _interleaved(chain: Sequence[Module], activation: str) -> list[object]:
    notation: list[object] = []
    for module in chain:
        notation += [activation, _entry(module)] if notation else [_entry(module)]
    return notation


def _entry(module: Module) -> str:
    return module.name or module.kinds[0]


@dataclass(frozen=True)
class _Refusal:
    """The error about a checkpoint that can be several heads."""

    modules: Modules
    activation: str | None
    place: Path
    where: str

    def because(self, reason: str, wish: str, proposal: Sequence[object] = ()) -> HeadError:
        return HeadError(f"{self.where}: {reason}. {self.advice(wish, proposal)}")

    def advice(self, wish: str, likeliest: Sequence[object] = ()) -> str:
        proposal = likeliest or self._proposal()
        example = json.dumps({"layers": proposal}) if proposal else '{"layers": ["fc1", "relu", "fc2"]}'
        return (
            f"{wish} in {self.place}, such as {example}, with the activations of your module ({', '.join(ACTIVATIONS)})"
        )

    def _proposal(self) -> list[object]:
        """Returns the likeliest layers; empty if there is no likeliest."""
        found = self.modules.found
        activation = self.activation or USUAL
        orders = [found] if self.modules.are_in_order else []
        for order in (*orders, *_orders(found)):
            notation: list[object] = []
            width: int | None = None
            last = None
            for module in order:
                if width is not None and module.n_in != width:
                    break
                if module.kinds == (LINEAR,) and last is not None:
                    notation.append(activation)
                last = module if module.kinds == (LINEAR,) else last
                kind = f": {module.kinds[0]}" if len(module.kinds) > 1 else ""
                notation.append(f"{_entry(module)}{kind}")
                width = module.n_out
            else:
                return notation
        return self._branching(activation)

    def _branching(self, activation: str) -> list[object]:
        """Returns a first layer with the others side by side behind it, if the widths allow it."""
        for first in self.modules.found:
            others = [module for module in self.modules.found if module is not first]
            if others and all(module.kinds == (LINEAR,) and module.n_in == first.n_out for module in others):
                return [_entry(first), activation, [[_entry(module)] for module in others]]
        return []
