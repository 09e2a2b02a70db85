"""The layers of a head as people write them, in order: `["fc1", "gelu", "norm", "fc2", "sigmoid"]`.

An entry is one of

- the name of a module in the file, `fc1`;
- a name with its kind, `act: prelu`, where the tensors can be several kinds;
- a kind, `linear` or `layer_norm`, for the next module of that kind;
- an activation, `gelu`;
- a list of such lists, for chains that take the same values and whose outputs stand side by side.

A norm may end with its epsilon, `norm eps=1e-6` or `layer_norm eps=1e-12`. Every module is used exactly once.
"""

import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mlfilter_core.compute.linear import ACTIVATIONS
from mlfilter_core.errors import HeadError
from mlfilter_core.heads.layers import (
    Activation,
    Layer,
    LayerNorm,
    Linear,
    PReLU,
    RMSNorm,
    Scale,
    input_width,
    output_width,
    side_by_side,
)
from mlfilter_core.heads.modules import (
    BATCH_NORM,
    KINDS,
    LAYER_NORM,
    LINEAR,
    PRELU,
    RMS_NORM,
    STANDARDIZE,
    UNSTANDARDIZE,
    Module,
    Modules,
)

Notation = Sequence[Any]

# Epsilons of torch.nn.LayerNorm, BatchNorm1d and RMSNorm that are given none; the last one in float32.
DEFAULT_EPS = {LAYER_NORM: 1e-5, BATCH_NORM: 1e-5, RMS_NORM: torch.finfo(torch.float32).eps}
WITH_EPS = re.compile(r"(?P<norm>.+) eps=(?P<eps>.*)")
MAX_DEPTH = 4  # of lists in lists; arbitrary


def read_eps(value: Any, where: str) -> float:
    """Returns the epsilon of norms.

    Raises:
        HeadError: It is not a number between 0 and 1.
    """
    try:
        eps = float(value)
    except (TypeError, ValueError):
        eps = -1
    if not 0 <= eps < 1:
        raise HeadError(f"{where}: eps is {reprlib.repr(value)}, not a number between 0 and 1; correct it")
    return eps


def build_layers(
    notation: Notation, modules: Modules, eps: float | None, where: str
) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """Returns the layers that are written, with the tensors of the modules, and in words the epsilons that are assumed.

    Args:
        notation: The entries, as above.
        modules: Modules of the checkpoint.
        eps: Added to the variance in each norm that states none; None for PyTorch's default.
        where: The checkpoint, for messages.

    Raises:
        HeadError: An entry names nothing, a module is missing or used twice, or the widths do not fit.
    """
    builder = _Builder(modules, eps, where)
    layers = builder.chain(notation, None, 0)
    if builder.unused:
        raise HeadError(
            f"{where}: layers leaves out {', '.join(map(str, builder.unused.values()))}; write every module of the "
            "file, in the order in which they are applied"
        )
    return layers, tuple(f"{kind} with eps {builder.assumed[kind]:.8g}" for kind in sorted(builder.assumed))


class _Builder:
    """Turns entries to layers, and keeps account of the modules that are left."""

    def __init__(self, modules: Modules, eps: float | None, where: str) -> None:
        self.unused: dict[str, Module] = {module.name: module for module in modules.found}
        self.assumed: dict[str, float] = {}  # epsilon by the kind of norm
        self._names = set(self.unused)
        self._full = {_full_name(module): module.name for module in modules.found}
        self._are_in_order = modules.are_in_order
        self._eps = eps
        self._where = where

    def chain(self, notation: Any, width: int | None, depth: int) -> tuple[Layer, ...]:
        """Returns the layers of a chain that takes values of a width; None for any width."""
        if not isinstance(notation, list) or not notation or depth > MAX_DEPTH:
            raise HeadError(
                f'{self._where}: layers has {reprlib.repr(notation)}, not a list such as ["linear", "gelu", "linear"]'
            )
        layers: list[Layer] = []
        for entry in notation:
            layer, shown = self._layer(entry, width, depth)
            n_in = input_width([layer])
            if width is not None and n_in is not None and n_in != width:
                raise HeadError(
                    f"{self._where}: {shown} takes {n_in} values, but the layer before it gives {width}; save the head "
                    "again, or write its layers in order"
                )
            layers.append(layer)
            width = output_width([layer]) or width
        has_linear = any(isinstance(layer, Linear) or not isinstance(layer, _ELEMENTWISE) for layer in layers)
        # A chain beside others may be a norm alone, whose weights tell its width.
        if not has_linear and (not depth or output_width(layers) is None):
            raise HeadError(f"{self._where}: {reprlib.repr(notation)} has no linear layer; correct layers")
        return tuple(layers)

    def _layer(self, entry: Any, width: int | None, depth: int) -> tuple[Layer, str]:
        if isinstance(entry, list):
            chains = [self.chain(chain, width, depth + 1) for chain in entry]
            widths = sorted({n_in for chain in chains if (n_in := input_width(chain)) is not None})
            if len(widths) > 1:
                raise HeadError(
                    f"{self._where}: chains side by side take {' and '.join(map(str, widths))} values; correct layers"
                )
            return side_by_side(chains), "a list of chains"
        if not isinstance(entry, str):
            raise HeadError(f"{self._where}: layers has {reprlib.repr(entry)}, which is neither a text nor a list")
        with_eps = WITH_EPS.fullmatch(entry)
        stated = with_eps["norm"] if with_eps else entry
        eps = read_eps(with_eps["eps"], self._where) if with_eps else None
        name, _, kind = stated.partition(": ")
        name = self._full.get(name, name)
        if name in self.unused and (not kind or kind in KINDS):
            module = self.unused.pop(name)
            return self._of(module, kind or self._only_kind(module), eps), module.shown
        if entry in ACTIVATIONS:
            return Activation(entry), entry
        if stated in KINDS:
            following = self._next(stated)
            if following is not None:
                return self._of(following, stated, eps), following.shown
            if stated == LAYER_NORM:
                return LayerNorm(None, None, self._eps_of(LAYER_NORM, eps)), entry
        raise HeadError(f"{self._where}: layers has {entry!r}, which is {self._what_it_is_not(stated, name)}")

    def _next(self, kind: str) -> Module | None:
        fitting = [module for module in self.unused.values() if kind in module.kinds]
        if len(fitting) > 1 and not self._are_in_order:
            raise HeadError(
                f"{self._where}: the file does not tell which {kind} is next in layers; write one of "
                f"{', '.join(map(str, fitting))} by its name"
            )
        return self.unused.pop(fitting[0].name) if fitting else None

    def _only_kind(self, module: Module) -> str:
        if len(module.kinds) > 1:
            raise HeadError(
                f"{self._where}: {module} can be several layers; write it as "
                f"{' or '.join(repr(f'{module.name}: {kind}') for kind in module.kinds)} in layers"
            )
        return module.kinds[0]

    def _what_it_is_not(self, entry: str, name: str) -> str:
        if name in self._names:
            return "used twice, or not of that kind; write every module once"
        left = ", ".join(map(str, self.unused.values())) or "none"
        return (
            f"neither a module that is left in the file ({left}) nor an activation; known: "
            f"{', '.join((*ACTIVATIONS, *KINDS))}"
        )

    def _of(self, module: Module, kind: str, eps: float | None) -> Layer:
        is_vector = module.kinds == (PRELU,) and kind in (LAYER_NORM, RMS_NORM)  # a norm of one value
        if kind not in module.kinds and not is_vector:
            raise HeadError(f"{self._where}: {module} is not a {kind}; correct layers")
        if eps is not None and kind not in DEFAULT_EPS:
            raise HeadError(f"{self._where}: {module} has no eps, only norms do; correct layers")
        own: Mapping[str, torch.Tensor] = module.tensors
        if kind == LINEAR:
            weight = own["weight"]
            return Linear(weight, own.get("bias", torch.zeros(len(weight))))
        if kind == LAYER_NORM:
            return LayerNorm(own["weight"], own.get("bias"), self._eps_of(kind, eps))
        if kind == RMS_NORM:
            return RMSNorm(own["weight"], self._eps_of(kind, eps))
        if kind == PRELU:
            return PReLU(own["weight"])
        added = self._eps_of(kind, eps) if kind == BATCH_NORM else 0.0
        return _scale(kind, {part: tensor.double() for part, tensor in own.items()}, added, module, self._where)

    def _eps_of(self, kind: str, stated: float | None) -> float:
        """Returns the epsilon of a norm: that of its entry, else that of all norms, else the default, as assumed."""
        eps = self._eps if stated is None else stated
        if eps is None:
            eps = self.assumed[kind] = DEFAULT_EPS[kind]
        return eps


_ELEMENTWISE = (LayerNorm, RMSNorm, Scale, Activation, PReLU)


def _scale(kind: str, own: Mapping[str, torch.Tensor], eps: float, module: Module, where: str) -> Scale:
    """Returns a layer that scales each value, computed in float64."""
    center: torch.Tensor | None = None
    if kind == BATCH_NORM:
        factor = own.get("weight", torch.ones(1)) / (own["running_var"] + eps).sqrt()
        shift, center = own.get("bias", torch.zeros(1)), own["running_mean"]
    elif kind == STANDARDIZE:
        factor, shift, center = 1 / own["std"], torch.zeros(1), own["mean"]
    else:
        assert kind == UNSTANDARDIZE
        factor, shift = own["std"], own["mean"]
    factor, shift = factor.float(), shift.float()
    if not (factor.isfinite().all() and shift.isfinite().all()):
        raise HeadError(f"{where}: {module} divides by zero; correct its standard deviations")
    return Scale(factor, shift, None if center is None else center.float())


def _full_name(module: Module) -> str:
    return module.shown.rpartition(".")[0]
