"""The tensors of a checkpoint's file, and the facts that it states about them.

Nothing in a file is executed, and the library that wrote it is not needed: of the classes in a pickle, those that
training code often saves beside the weights are replaced by empty ones, and any other is refused.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mlfilter_core.errors import HeadError, in_one_line
from mlfilter_core.heads.checkpoint_files import INDEX_SUFFIX, read_weight_map

# Keys under which training code stores the weights: PyTorch Lightning, other trainers. The first one counts.
WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "head", "head_state_dict", "net", "network"),
    *("classifier", "regressor", "weights", "params", "parameters"),
)
MAX_WRAPPERS = 3  # within each other; a mapping may contain itself
SETTINGS = "hyper_parameters"  # of PyTorch Lightning, beside the weights
# Names of widths in settings that training code stores with the weights: of Lightning, of the predecessor.
WIDTH_NAMES = ("input_dim", "embedding_dim")
HIDDEN_NAMES = ("hidden_dim",)
OUTPUT_NAMES = ("num_tasks",)


class _Ignored:
    """Stands for an object of another class. Keeps nothing and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Attributes:
    """Stands for an `argparse.Namespace` and its like: keeps the attributes, to be read as settings."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.kept: dict[str, Any] = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Attributes":
        made = super().__new__(cls)
        made.kept = {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.kept = state if isinstance(state, dict) else {}


class _Dictionary:
    """Stands for a subclass of dict: becomes a dict."""

    def __new__(cls, *args: Any, **kwargs: Any) -> dict[Any, Any]:  # type: ignore[misc]
        return {}


# Names of classes and functions, and what stands for them.
_LIGHTNING = (
    *("lightning.fabric.utilities.data", "lightning_fabric.utilities.data"),
    *("pytorch_lightning.utilities.parsing", "lightning.pytorch.utilities.parsing"),
)
_PATHS = ("PosixPath", "WindowsPath", "Path", "PurePath", "PurePosixPath", "PureWindowsPath")
_NUMPY = ("core.multiarray.scalar", "_core.multiarray.scalar", "core.multiarray._reconstruct", "dtype", "ndarray",
          "_core.multiarray._reconstruct", "_core.numeric._frombuffer", "core.numeric._frombuffer")  # fmt: skip
STAND_INS: dict[str, type] = {
    **{f"{module}.{name}": _Ignored for module in ("pathlib", "pathlib._local") for name in _PATHS},
    **{f"numpy.{name}": _Ignored for name in _NUMPY},
    **dict.fromkeys(
        ("datetime.datetime", "datetime.timedelta", "datetime.date", "uuid.UUID", "decimal.Decimal"), _Ignored
    ),
    **dict.fromkeys(("builtins.slice", "builtins.range", "builtins.frozenset", "builtins.list"), _Ignored),
    **dict.fromkeys(("builtins.int", "builtins.float", "builtins.str", "builtins.dict"), _Ignored),
    "torch.torch_version.TorchVersion": _Ignored,
    "argparse.Namespace": _Attributes,
    "types.SimpleNamespace": _Attributes,
    "collections.defaultdict": _Dictionary,
    **{f"{module}.AttributeDict": _Dictionary for module in _LIGHTNING},
}


def read_tensors(path: Path, where: str) -> tuple[Mapping[str, torch.Tensor], dict[str, Any]]:
    """Returns the tensors of a file by name, and its facts about them: metadata of safetensors, widths of trainers.

    Args:
        path: The file, or an index of several.
        where: The checkpoint, for messages.

    Raises:
        HeadError: The file is corrupted, contains code, or is not a state dict.
    """
    if path.name.endswith(INDEX_SUFFIX):
        return read_some_tensors(path, [""], where), {}
    try:
        return _read_safetensors(path, None) if path.suffix == ".safetensors" else _read_pickle(path)
    except Exception as error:
        raise _unreadable(error, where) from error


def read_some_tensors(path: Path, wanted: Sequence[str], where: str) -> Mapping[str, torch.Tensor]:
    """Returns those tensors of a file, or of the shards of an index, whose names contain one of the given texts.

    Reads no other tensor of safetensors, and no other shard.

    Raises:
        HeadError: As `read_tensors`.
    """
    try:
        if path.name.endswith(INDEX_SUFFIX):
            return _read_shards(path, wanted)
        if path.suffix == ".safetensors":
            return _read_safetensors(path, wanted)[0]
        tensors, _ = _read_pickle(path)
    except Exception as error:
        raise _unreadable(error, where) from error
    return {key: tensor for key, tensor in tensors.items() if _is_wanted(str(key), wanted)}


def _read_shards(index: Path, wanted: Sequence[str]) -> dict[str, torch.Tensor]:
    files = read_weight_map(index)
    tensors: dict[str, torch.Tensor] = {}
    for file in dict.fromkeys(file for name, file in files.items() if _is_wanted(name, wanted)):
        path = index.with_name(file)
        found = _read_safetensors(path, wanted)[0] if path.suffix == ".safetensors" else _read_pickle(path)[0]
        tensors |= {name: found[name] for name in found if files.get(name) == file and _is_wanted(str(name), wanted)}
    return tensors


def _unreadable(error: Exception, where: str) -> HeadError:
    """Returns the error about an exception: torch and safetensors raise RuntimeError, UnpicklingError, KeyError, ..."""
    return HeadError(
        f"{where} does not load as plain tensors ({in_one_line(error)}); nothing in it was executed. Save it again "
        "with torch.save(head.state_dict(), path) or safetensors"
    )


def _is_wanted(name: str, wanted: Sequence[str] | None) -> bool:
    return wanted is None or any(text in name for text in wanted)


def _read_safetensors(path: Path, wanted: Sequence[str] | None) -> tuple[Mapping[str, torch.Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if _is_wanted(name, wanted)]  # noqa: SIM118, it is no mapping
        metadata = {key: _unwrapped(value) for key, value in (file.metadata() or {}).items()}
        return {name: file.get_tensor(name) for name in names}, metadata


def _unwrapped(value: str) -> Any:
    """Returns a value of the metadata, which are strings, with lists and objects as JSON."""
    if value[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _read_pickle(path: Path) -> tuple[Mapping[str, torch.Tensor], dict[str, Any]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed, as torch.save never does, and may unpack to any size")
    with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in STAND_INS.items()]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    facts: dict[str, Any] = {}
    for _ in range(MAX_WRAPPERS):
        wrapper = _wrapper(content)
        if wrapper is None:
            break
        facts |= _settings(content)
        content = content[wrapper]
    content = _without_settings(content)
    if not isinstance(content, Mapping):
        raise TypeError(f"it contains a {type(content).__name__}, not a state dict")
    return content, facts


def _wrapper(content: Any) -> str | None:
    """Returns the key under which the weights are.

    Raises:
        ValueError: There are several such keys.
    """
    if not isinstance(content, Mapping):
        return None
    content = _without_settings(content)
    found = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
    holding = [key for key in found if any(isinstance(value, torch.Tensor) for value in content[key].values())]
    if len(holding) > 1 and not holding[0].endswith("state_dict"):
        raise ValueError(f"it contains weights under {' and '.join(holding)}; save those of the head alone")
    return next(iter(holding or found), None)


def _without_settings(content: Any) -> Any:
    """Returns a mapping without those in it that have no tensors, if tensors lie beside them: `"params": {"lr": 1}`."""
    if not isinstance(content, Mapping) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        return content
    return {key: value for key, value in content.items() if not isinstance(value, Mapping) or _has_tensors(value)}


def _has_tensors(content: Mapping[Any, Any]) -> bool:
    """Whether a tensor is anywhere in a mapping, which may contain itself."""
    seen: set[int] = set()
    left: list[Any] = [content]
    while left:
        value = left.pop()
        if isinstance(value, torch.Tensor):
            return True
        if isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, Mapping) else value
    return False


def _settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the widths among the settings that training code stores beside the weights."""
    own = content.get(SETTINGS)
    own = own.kept if isinstance(own, _Attributes) else own
    known = (*WIDTH_NAMES, *HIDDEN_NAMES, *OUTPUT_NAMES)
    return {name: own[name] for name in known if name in own} if isinstance(own, Mapping) else {}
