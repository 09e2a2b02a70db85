"""OpenVINO as its documentation and a careful user would run an encoder: the peer of `embed_cpu.py`.

The model, mean pooling and normalization are converted together, with dynamic shapes. Texts are sorted by length and
padded in batches of a number of tokens.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel

BATCH_TOKENS = 2048


class MeanOfTokens(torch.nn.Module):
    """Token embeddings, their mean, of unit length."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        tokens = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        is_token = attention_mask.unsqueeze(-1).to(tokens.dtype)
        return torch.nn.functional.normalize((tokens * is_token).sum(1) / is_token.sum(1), dim=1)


def openvino_peer(folder: Path, precision: str, threads: int) -> Callable[[list[NDArray[Any]]], NDArray[np.float32]]:
    """Returns a function from token ids to embeddings.

    Args:
        folder: Folder of the model.
        precision: `f32` or `bf16`.
        threads: Threads of its one stream.
    """
    import openvino

    example = torch.ones((2, 16), dtype=torch.long)
    model = openvino.convert_model(
        MeanOfTokens(folder), example_input={"input_ids": example, "attention_mask": example}
    )
    for model_input in model.inputs:
        model_input.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    model.validate_nodes_and_infer_types()
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", settings)

    def encode(input_ids: list[NDArray[Any]]) -> NDArray[np.float32]:
        order = sorted(range(len(input_ids)), key=lambda row: len(input_ids[row]))
        batches: list[list[int]] = [[]]
        for row in order:
            if batches[-1] and (len(batches[-1]) + 1) * len(input_ids[row]) > BATCH_TOKENS:
                batches.append([])
            batches[-1].append(row)
        embeddings: dict[int, NDArray[np.float32]] = {}
        for batch in batches:
            padded = np.zeros((len(batch), len(input_ids[batch[-1]])), np.int64)
            mask = np.zeros_like(padded)
            for place, row in enumerate(batch):
                padded[place, : len(input_ids[row])] = input_ids[row]
                mask[place, : len(input_ids[row])] = 1
            embeddings.update(zip(batch, compiled([padded, mask])[0], strict=True))
        return np.stack([embeddings[row] for row in range(len(input_ids))])

    return encode
