"""A check of the widths of a head without torch, which takes seconds to import: milliseconds, before all else.

It refuses no head that fits. `mlfilter_core.heads.head.check_heads_fit` is the exact one.
"""

import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from mlfilter_core.errors import HeadError
from mlfilter_core.heads.checkpoint_files import HeadFiles
from mlfilter_core.heads.trained_head import check_width, stated_width

Shape = tuple[int, ...]

# How torch writes tensors, whose third argument is the shape. Tensors of other kinds make a file's shapes unknown.
_TENSORS = ("_rebuild_tensor", "_rebuild_tensor_v2")
_TENSOR_MODULE = "torch._utils"
_MODULES_OF_TENSORS = "torch._"
_WRAPPERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")  # of a tensor that is in the file as well
_PICKLED = "/data.pkl"


def check_layers(name: str, files: HeadFiles, dim: int, where: str) -> None:
    """Checks that some layer of a head has the width of the embeddings; accepts a file whose layers cannot be told.

    Args:
        name: The head's name in the job.
        files: Its files.
        dim: Width of the embeddings.
        where: The file of embeddings, for the message.

    Raises:
        HeadError: A head that was trained by this project takes another width, or no layer of the head has this one.
    """
    stated = stated_width(files.weights)
    if stated is not None:
        check_width(name, stated, dim, where)
        return
    try:
        shapes = [shape for path in files.shards or (files.weights,) for shape in _shapes(path)]
    except Exception:  # the head's loading reports what is wrong with the file
        return
    layers = [shape for shape in shapes if len(shape) > 1]
    if layers and not any(dim in shape for shape in layers):
        widths = ", ".join(dict.fromkeys(" x ".join(map(str, shape)) for shape in layers[:4]))
        raise HeadError(
            f"head {name}: no layer of {files.weights} takes embeddings of width {dim}, as those of {where} are; its "
            f"layers: {widths}; use the head that was trained on this encoder's embeddings"
        )


def _shapes(path: Path) -> Iterable[Shape]:
    """Returns the shapes of the tensors of a file; raises what the libraries do for a file that cannot be read."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "numpy") as file:
            return [tuple(file.get_slice(key).get_shape()) for key in file.keys()]  # noqa: SIM118, it is no mapping
    with zipfile.ZipFile(path) as archive:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith(_PICKLED))
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError("it is compressed, and may unpack to any size")
        with archive.open(entry) as pickled:
            reader = _ShapeReader(pickled)
            reader.load()
            return reader.shapes


class _Anything(dict[Any, Any]):
    """Stands for every object but a tensor, and for what makes one; runs nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __call__(self, *args: Any, **kwargs: Any) -> "_Anything":
        return self

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class _ShapeReader(pickle._Unpickler):
    """Reads the shapes of the tensors in a pickle. Nothing that the pickle names is imported.

    Written in Python: that in C allocates whatever memory a broken or hostile pickle names.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.shapes: list[Shape] = []

    def find_class(self, module: str, name: str) -> Any:
        if module == _TENSOR_MODULE and name in _TENSORS:
            return self._note
        if module.startswith(_MODULES_OF_TENSORS) and name not in _WRAPPERS:
            raise pickle.UnpicklingError(f"it has tensors that {module}.{name} makes")
        return _Anything

    def persistent_load(self, pid: Any) -> None:
        """Returns nothing in the place of a tensor's values."""

    def _note(self, storage: Any, offset: int, shape: Shape, *others: Any) -> _Anything:
        self.shapes.append(tuple(shape))
        return _Anything()
