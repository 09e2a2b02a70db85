"""The transformer of an encoder on the CPU, computed by OpenVINO instead of PyTorch.

OpenVINO fuses what PyTorch computes layer by layer, and no core waits for another: 1.03 times as many tokens/s in
float32 and 1.10 in bfloat16 on two cores (benchmarks/README.md). It is optional, and only computes what gives the
embeddings of PyTorch: see `mlfilter_core.encoder.optimizations`.
"""

import copy
import importlib.util
import logging
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import cycle
from typing import Any

import torch

from mlfilter_core.errors import EncoderError

Features = Mapping[str, torch.Tensor]

# Each core computes a few texts of its own, in its own cache, and never waits for another: two cores are 1.1 times as
# fast as with batches for both.
PIECE_TOKENS = 512
WAITING = 2  # pieces that each core has at a time, so that none is idle between two
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def is_installed() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("openvino") is not None


class OpenVinoEngine:
    """A transformer that computes several batches at the same time, each on one core.

    Attributes:
        n_requests: Batches that are computed or wait for a core at a time.
    """

    def __init__(self, transformer: torch.nn.Module, example: Features, dtype: torch.dtype, n_cores: int) -> None:
        """Converts a transformer, which takes some seconds, and leaves it as it is.

        Args:
            transformer: First module of a model of sentence-transformers, on the CPU.
            example: Its features for some texts of different lengths.
            dtype: One of `PRECISIONS`, to compute in.
            n_cores: Cores to use.

        Raises:
            EncoderError: This CPU does not compute in that dtype.
            Exception: OpenVINO cannot convert the model; its errors have many types.
        """
        openvino = _import_openvino()
        model = _convert(openvino, transformer, example)
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
        self._names = tuple(example)
        self.n_requests = n_cores * WAITING
        self._requests = cycle([compiled.create_infer_request() for _ in range(self.n_requests)])

    def run(self, batches: Iterable[Features]) -> Iterator[torch.Tensor]:
        """Yields the token embeddings of each batch, in order; later batches are computed meanwhile.

        Yields:
            float32 (n_texts, n_tokens, width), valid until the next one is asked for.

        Raises:
            RuntimeError: Memory ran out, for example.
        """
        waiting: deque[Any] = deque()
        try:
            for features in batches:
                if len(waiting) == self.n_requests:
                    yield _result(waiting.popleft())
                request = next(self._requests)
                request.start_async({name: features[name].numpy() for name in self._names})
                waiting.append(request)
            while waiting:
                yield _result(waiting.popleft())
        finally:
            for request in waiting:  # after an error; the requests are used again
                with suppress(RuntimeError):
                    request.wait()


class _TokenEmbeddings(torch.nn.Module):
    """A transformer with tensors as arguments and result, which can be traced."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            features["token_type_ids"] = token_type_ids
        embeddings: torch.Tensor = self.transformer(features)["token_embeddings"]
        return embeddings


def _convert(openvino: Any, transformer: torch.nn.Module, example: Features) -> Any:
    """Returns the transformer as a model of OpenVINO, in float32, for any number of texts and tokens."""
    if any(parameter.dtype != torch.float32 for parameter in transformer.parameters()):
        transformer = copy.deepcopy(transformer).float()
    log = logging.getLogger("transformers")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns about properties for training, at which the conversion looks, too
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of PyTorch's tracer, about numbers that it takes as constants
            model = openvino.convert_model(_TokenEmbeddings(transformer), example_input=dict(example))
    finally:
        log.setLevel(level)
    for model_input in model.inputs:
        model_input.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    model.validate_nodes_and_infer_types()
    return model


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
