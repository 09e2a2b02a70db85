"""The tensors of a checkpoint as the modules that they belong to, each with what its tensors can be.

Knows nothing about the order in which modules are applied, apart from the order of their names.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from mlfilter_core.errors import HeadError

# Dtypes in which layers are trained. Others are quantized and need scales, or are complex.
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LINEAR, LAYER_NORM, RMS_NORM, BATCH_NORM, PRELU = "linear", "layer_norm", "rms_norm", "batch_norm", "prelu"
STANDARDIZE, UNSTANDARDIZE = "standardize", "unstandardize"
KINDS = (LINEAR, LAYER_NORM, RMS_NORM, BATCH_NORM, PRELU, STANDARDIZE, UNSTANDARDIZE)

# Parts of names that wrappers put before all others: Lightning, torch.compile, DataParallel, and modules around a
# torch.nn.Sequential. What they name is one module, not a list of modules.
WRAPPER_NAMES = {
    *("_orig_mod", "module", "model", "net", "network", "head", "heads", "mlp", "sequential", "seq", "classifier"),
    *("regressor", "regression_head", "classification_head", "score_head", "scorer", "estimator"),
}
# Losses and metrics that a LightningModule keeps: criterion.pos_weight, val_metric.sum, train_acc.correct.
LOSS = re.compile(r"(\w+_)?criteri(on|a)|loss(es|_fn|_func|_function|_weights?)?|\w+_loss|pos_weight|class_weights?")
METRIC = re.compile(r"(\w+_)?metrics?|(train|training|val|valid|validation|test|best)_\w+")
MEASURES = {"metric", "metrics", "loss", "error", "acc", "accuracy", "mae", "mse", "rmse", "f1", "auc", "auroc"}
# What a head computes with, although its name begins like that of a metric: train_mean, val_temperature, test_norm.
COMPUTED_WITH = ("mean", "std", "sigma", "scale", "temperature", "norm", "bn", "bias", "shift", "offset", "center",
                 "whiten", "prior", "logit")  # fmt: skip
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
UNSAID_COUNTER = "num_batches_tracked"  # of BatchNorm
COUNTERS = (UNSAID_COUNTER, "n_averaged")  # the latter of torch.optim.swa_utils.AveragedModel
MEANS = ("mean", "mean_", "mu", "means")
DEVIATIONS = ("std", "std_", "scale_", "sigma", "stds", "stddev", "deviation")


@dataclass(frozen=True, eq=False)
class Module:
    """A module with tensors.

    Attributes:
        name: Name in the file, without the parts that all tensors share.
        kinds: What the tensors can be, of `KINDS`; several for a vector without a bias.
        tensors: float32 tensors by their name in the module.
        shown: Name of its weight in the file, for messages.
    """

    name: str
    kinds: tuple[str, ...]
    tensors: Mapping[str, torch.Tensor]
    shown: str

    @property
    def n_in(self) -> int:
        return int(self.tensors["weight"].shape[1]) if self.kinds == (LINEAR,) else self.n_out

    @property
    def n_out(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __str__(self) -> str:
        width = f"{self.n_in} to {self.n_out}" if self.kinds == (LINEAR,) else f"{self.n_out}"
        return f"{self.name or self.shown} ({' or '.join(self.kinds)}, {width})"


@dataclass(frozen=True)
class Modules:
    """The modules of a checkpoint, in the order of their numbers, else in that of the file.

    Attributes:
        found: The modules.
        are_in_order: Whether the order is that of their numbers, or of their definition.
        prefix: Parts of names that all tensors share, without those of wrappers.
        left_out: What is no part of a head, in words: tensors of losses and metrics, counters.
    """

    found: tuple[Module, ...]
    are_in_order: bool
    prefix: str
    left_out: tuple[str, ...] = ()


def read_modules(tensors: Mapping[str, torch.Tensor], is_saved_in_order: bool, where: str) -> Modules:
    """Returns the modules that tensors belong to.

    Args:
        tensors: Tensors by name, `<module>.weight`, `<module>.bias` and so on.
        is_saved_in_order: Whether they are in the order in which their module defines them.
        where: The checkpoint, for messages.

    Raises:
        HeadError: A tensor is of no known module, not finite, or not plain floats.
    """
    named = {str(key): tensor for key, tensor in tensors.items()}
    left_out = _not_of_the_head(named)
    own = {key: tensor for key, tensor in named.items() if key not in left_out}
    shared, prefix = _shared_parts(list(own))
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in own.items():
        module, _, part = key.rpartition(".")
        groups.setdefault(module, {})[part] = tensor
    found: list[Module] = []
    unknown: list[str] = []
    for full_name, parts in groups.items():
        modules, rest = _modules(full_name, ".".join(full_name.split(".")[shared:]), parts, where)
        found += modules
        unknown += [f"{full_name}.{part}" if full_name else part for part in rest]
    if unknown or not any(LINEAR in module.kinds for module in found):
        raise HeadError(
            f"{where}: not a chain of linear layers; it contains "
            + (", ".join(unknown or list(named)[:5]) or "nothing")
        )
    values = [tensor for module in found for tensor in module.tensors.values()]
    if not all(tensor.isfinite().all() for tensor in values):
        raise HeadError(f"{where}: a weight is NaN or infinite; the head's training diverged")
    is_numbered = len({re.sub(r"\d+", "", module.name) for module in found}) <= 1
    if is_numbered:
        found.sort(key=lambda module: natural(module.name))
    return Modules(tuple(found), is_saved_in_order or is_numbered, prefix, _in_words(left_out))


def natural(name: str) -> list[tuple[int, str]]:
    """Returns a key that sorts numbers by length, then by digits: int() rejects more than 4300 digits."""
    parts = [part.lstrip("0") if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    return [(len(part), part) if i % 2 else (-1, part) for i, part in enumerate(parts)]


def _not_of_the_head(named: Mapping[str, torch.Tensor]) -> list[str]:
    """Returns the tensors of losses and metrics, and counters.

    What has a linear layer is neither a loss nor a metric, whatever it is called.
    """
    linear = [key for key, tensor in named.items() if key.endswith("weight") and getattr(tensor, "ndim", 0) == 2]
    left_out = []
    for key in named:
        parts = key.split(".")
        i = next((i for i, part in enumerate(parts) if LOSS.fullmatch(part.lower()) or _is_metric(key, i, named)), None)
        place = ".".join(parts[: i + 1]) if i is not None else ""
        is_linear = any(other == place or other.startswith(f"{place}.") for other in linear)
        if parts[-1] in COUNTERS or (place and not is_linear):
            left_out.append(key)
    return left_out


def _is_metric(key: str, i: int, named: Mapping[str, torch.Tensor]) -> bool:
    """Whether the i-th part of a name is a metric: named like one, and nothing that a head computes with."""
    parts = key.lower().split(".")
    if not METRIC.fullmatch(parts[i]):
        return False
    if set(parts[i].split("_")) & MEASURES:
        return True
    if any(word in parts[i] for word in COMPUTED_WITH):
        return False
    last = parts[-1]
    if i < len(parts) - 1 and last in (*MEANS, *DEVIATIONS, "scale", "temperature"):
        return False
    module = key.rpartition(".")[0]
    vectors = [named.get(f"{module}.{part}") for part in ("weight", "running_mean")]
    return not (last in NORM_PARTS and any(getattr(vector, "ndim", 0) == 1 for vector in vectors))


def _in_words(left_out: Collection[str]) -> tuple[str, ...]:
    counters = [key for key in left_out if key.rpartition(".")[2] in COUNTERS]
    others = [key for key in left_out if key not in counters]
    said = [key for key in counters if not key.endswith(UNSAID_COUNTER)]
    return (
        *([f"left out as loss or metric: {', '.join(others)}"] if others else []),
        *([f"left out as counter: {', '.join(said)}"] if said else []),
    )


def _shared_parts(keys: Collection[str]) -> tuple[int, str]:
    """Returns the number of first parts that all names share, and those parts that are not wrappers' names."""
    names = [key.split(".")[:-1] for key in keys]
    is_one_module = len({tuple(name) for name in names}) == 1
    shared = 0
    while names and all(len(name) > shared + is_one_module for name in names):
        if len({name[shared] for name in names}) > 1:
            break
        shared += 1
    parts = names[0][:shared] if names else []
    return shared, ".".join(part for part in parts if part not in WRAPPER_NAMES)


def _modules(full_name: str, name: str, parts: dict[str, torch.Tensor], where: str) -> tuple[list[Module], list[str]]:
    """Returns the modules with one name, and the parts that belong to none."""
    dot = f"{full_name}." if full_name else ""
    found: list[Module] = []
    remaining = dict(parts)
    if "weight" in remaining or {"running_mean", "running_var"} <= remaining.keys():
        own = _own_tensors(dot, remaining, where)
        kinds = _kinds(own)
        if kinds:
            found.append(Module(name, kinds, own, f"{dot}weight"))
            remaining = {part: tensor for part, tensor in remaining.items() if part not in own}
    for mean, deviation in _standardisations(remaining):
        own = {
            "mean": _plain(remaining[mean], f"{dot}{mean}", where).reshape(-1),
            "std": _plain(remaining[deviation], f"{dot}{deviation}", where).reshape(-1),
        }
        if own["mean"].shape == own["std"].shape and max((1, *remaining[mean].shape)) == len(own["mean"]):
            del remaining[mean], remaining[deviation]
            label = f"{name}.{mean}" if name else mean
            found.append(Module(label, (STANDARDIZE, UNSTANDARDIZE), own, f"{dot}{mean}"))
    return found, list(remaining)


def _own_tensors(dot: str, parts: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    own: dict[str, torch.Tensor] = {}
    weight = parts.get("weight")
    if "weight" in parts:
        if not isinstance(weight, torch.Tensor) or weight.ndim not in (1, 2) or not weight.is_floating_point():
            raise HeadError(f"{where}: {dot}weight is not a matrix; only linear layers are supported")
        own["weight"] = _plain(weight, f"{dot}weight", where)
    for part in ("bias", "running_mean", "running_var"):
        if part not in parts:
            continue
        tensor = parts[part]
        shown = f"the bias of {dot}weight" if part == "bias" else f"{dot}{part}"
        if not isinstance(tensor, torch.Tensor):
            raise HeadError(f"{where}: {shown} is a {type(tensor).__name__}, not a tensor")
        own[part] = _plain(tensor, shown, where)
        n = len(own["weight"]) if "weight" in own else len(own.get("running_mean", own[part]))
        if own[part].shape != (n,):
            raise HeadError(f"{where}: {shown} has shape {tuple(own[part].shape)}, not ({n},)")
    return own


def _kinds(own: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Returns what the tensors can be; empty for nothing known."""
    weight = own.get("weight")
    if {"running_mean", "running_var"} <= own.keys():
        return (BATCH_NORM,) if weight is None or weight.ndim == 1 else ()
    if weight is None or "running_mean" in own or "running_var" in own:
        return ()
    if weight.ndim == 2:
        return (LINEAR,)
    if "bias" in own:
        return (LAYER_NORM,)
    return (PRELU,) if len(weight) == 1 else (PRELU, LAYER_NORM, RMS_NORM)


def _standardisations(parts: Mapping[str, torch.Tensor]) -> list[tuple[str, str]]:
    """Returns pairs of names such as `mean` and `std`, or `input_mean` and `input_std`."""
    pairs = []
    for mean in parts:
        stem = next((mean.removesuffix(word) for word in MEANS if mean == word or mean.endswith(f"_{word}")), None)
        deviation = next((f"{stem}{word}" for word in DEVIATIONS if f"{stem}{word}" in parts), None)
        if stem is not None and deviation is not None:
            pairs.append((mean, deviation))
    return pairs


def _plain(tensor: torch.Tensor, what: str, where: str) -> torch.Tensor:
    """Returns a tensor as float32.

    Raises:
        HeadError: It is not an array of floats: computing with it could fail, err or fill the memory.
    """
    if not isinstance(tensor, torch.Tensor):
        raise HeadError(f"{where}: {what} is a {type(tensor).__name__}, not a tensor")
    is_dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
    if not is_dense or tensor.dtype not in DTYPES:
        kind = f"{tensor.dtype} {tensor.layout} on {tensor.device}".replace("torch.", "")
        raise HeadError(f"{where}: {what} is {kind}, not dense floats; save it as float32, on the CPU")
    if not tensor.numel():
        raise HeadError(f"{where}: {what} is empty, of shape {tuple(tensor.shape)}; save the weights of a trained head")
    # A view can repeat one number any number of times.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise HeadError(f"{where}: {what} claims more values than the file contains; save a copy, tensor.contiguous()")
    return tensor.float()
