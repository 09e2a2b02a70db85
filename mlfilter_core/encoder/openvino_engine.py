"""The transformer and the pooling of an encoder on the CPU, computed by OpenVINO instead of PyTorch.

OpenVINO fuses what PyTorch computes layer by layer, and no core waits for another (benchmarks/README.md has figures).
It is optional, and only computes what gives the embeddings of PyTorch: see `mlfilter_core.encoder.optimizations`.

The texts of a piece have equally many tokens, so that most models need no mask. The pooling is part of it: PyTorch's
threads, which wait actively for their next work, would take time from those of OpenVINO, a seventh of it in bfloat16.
"""

import copy
import importlib.util
import logging
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlfilter_core.errors import EncoderError

# Each core computes a few texts of its own, in its own cache, and never waits for another: two cores are 1.1 times as
# fast as with batches for both.
PIECE_TOKENS = 512
WAITING = 2  # pieces that each core has at a time, so that none is idle between two
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def is_installed() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("openvino") is not None


class OpenVinoEngine:
    """Modules of a model that compute several pieces at the same time, each on one core.

    Attributes:
        n_modules: Number of the modules.
        n_requests: Pieces that are computed or wait for a core at a time.
    """

    def __init__(
        self,
        modules: Sequence[torch.nn.Module],
        others: Mapping[str, Any],
        example: NDArray[np.int64],
        has_mask: bool,
        dtype: torch.dtype,
        n_cores: int,
    ) -> None:
        """Converts modules, which takes some seconds, and leaves them as they are.

        Args:
            modules: First modules of a model of sentence-transformers, up to its pooling, on the CPU.
            others: Features beside the token ids, the same for all texts. Token types are zeros, where there are any.
            example: Token ids of some texts, (n_texts, n_tokens).
            has_mask: Whether to give the transformer a mask, of ones, which some need and which takes time.
            dtype: One of `PRECISIONS`, to compute in.
            n_cores: Cores to use.

        Raises:
            EncoderError: This CPU does not compute in that dtype.
            Exception: OpenVINO cannot convert the model; its errors have many types.
        """
        openvino = _import_openvino()
        model = _convert(openvino, _Pooled(modules, others, has_mask), example)
        compiled = openvino.Core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
                "INFERENCE_NUM_THREADS": n_cores,
                "NUM_STREAMS": n_cores,
                # Every process would use the same first cores of the machine.
                "ENABLE_CPU_PINNING": False,
            },
        )
        used = str(compiled.get_property("INFERENCE_PRECISION_HINT"))
        if str(dtype).removeprefix("torch.") not in used:
            raise EncoderError(f"OpenVINO computes in {used} on this CPU, not in {dtype}")
        self.n_modules = len(modules)
        self.n_requests = n_cores * WAITING
        self._requests = cycle([compiled.create_infer_request() for _ in range(self.n_requests)])

    def run(self, pieces: Iterable[NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        """Yields the pooled embeddings of each piece, in order; later pieces are computed meanwhile.

        Args:
            pieces: Token ids of texts of equal lengths, (n_texts, n_tokens).

        Yields:
            float32 (n_texts, width), valid until the next one is asked for.

        Raises:
            RuntimeError: Memory ran out, for example.
        """
        waiting: deque[Any] = deque()
        try:
            for input_ids in pieces:
                if len(waiting) == self.n_requests:
                    yield _result(waiting.popleft())
                request = next(self._requests)
                request.start_async([input_ids])
                waiting.append(request)
            while waiting:
                yield _result(waiting.popleft())
        finally:
            for request in waiting:  # after an error; the requests are used again
                with suppress(RuntimeError):
                    request.wait()


class _Pooled(torch.nn.Module):
    """Modules with tensors as argument and result, which can be traced."""

    def __init__(self, modules: Sequence[torch.nn.Module], others: Mapping[str, Any], has_mask: bool) -> None:
        super().__init__()
        transformer: Any = modules[0]
        self.transformer, self.later = transformer, torch.nn.ModuleList(modules[1:])
        self.others = others
        self.has_mask = has_mask
        self.has_token_types = "token_type_ids" in transformer.tokenizer.model_input_names

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        mask = {"attention_mask": torch.ones_like(input_ids)}
        features = {"input_ids": input_ids, **self.others, **(mask if self.has_mask else {})}
        if self.has_token_types:
            features["token_type_ids"] = torch.zeros_like(input_ids)
        features = {**self.transformer(features), **mask}
        for module in self.later:
            features = module(features)
        embeddings: torch.Tensor = features["sentence_embedding"]
        return embeddings


def _convert(openvino: Any, pooled: _Pooled, example: NDArray[np.int64]) -> Any:
    """Returns modules as a model of OpenVINO, in float32, for any number of texts and tokens."""
    if any(parameter.dtype != torch.float32 for parameter in pooled.parameters()):
        pooled = copy.deepcopy(pooled).float()
    with _logging_kept(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of PyTorch's tracer, about numbers that it takes as constants
        model = openvino.convert_model(pooled, example_input=torch.from_numpy(example))
    for model_input in model.inputs:
        model_input.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    model.validate_nodes_and_infer_types()
    return model


@contextmanager
def _logging_kept() -> Iterator[None]:
    """Restores what a conversion changes of the logging of the whole process; if it fails, it leaves errors alone."""
    root, transformers = logging.getLogger(), logging.getLogger("transformers")
    of_root, level = (root.level, root.filters[:], root.handlers[:]), transformers.level
    transformers.setLevel(logging.ERROR)  # it warns about properties for training, at which the conversion looks, too
    try:
        yield
    finally:
        transformers.setLevel(level)
        root.setLevel(of_root[0])
        root.filters[:], root.handlers[:] = of_root[1:]


def _import_openvino() -> Any:
    """Imports OpenVINO, without the part that reports each import to its makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import openvino
    return openvino


def _result(request: Any) -> torch.Tensor:
    request.wait()
    return torch.from_numpy(request.get_output_tensor(0).data)
