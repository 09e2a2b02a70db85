"""Scores of each format of heads, compared with the torch module that was saved, or with transformers' classifier.

Modules have random weights and running statistics. Classifiers have the true architectures, few small layers and random
weights; they are compared from tokens to logits.

    python benchmarks/head_fidelity.py --json benchmarks/results/head_fidelity.json
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from fidelity import DIM, FAMILIES, SHORT_TEXTS, Family, make_model, prose
from measure import publish
from numpy.typing import NDArray
from torch import nn

from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import resolve_model
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.heads.checkpoint_formats import load_head
from mlfilter_core.heads.head import score

# Formats of heads: the module, the sidecar, and what a trainer saves around its state dict.
HIDDEN = 32
State = dict[str, torch.Tensor]
FORMATS: dict[str, tuple[nn.Module, dict[str, Any], Callable[[State], Any]]] = {
    "linear": (nn.Linear(DIM, 3), {}, dict),
    "linear_without_bias": (nn.Linear(DIM, 1, bias=False), {}, dict),
    "sequential_relu": (nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)), {}, dict),
    "sequential_relu_dropout": (
        nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Dropout(0.1), nn.Linear(HIDDEN, 1)),
        {},
        dict,
    ),
    "sequential_gelu_sidecar": (
        nn.Sequential(nn.Linear(DIM, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1)),
        {"activation": "gelu"},
        dict,
    ),
    "sigmoid_sidecar": (
        nn.Sequential(nn.Linear(DIM, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 1), nn.Sigmoid()),
        {"layers": ["linear", "silu", "linear", "sigmoid"]},
        dict,
    ),
    "layer_norm": (nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2)), {}, dict),
    "batch_norm": (
        nn.Sequential(nn.Linear(DIM, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)),
        {},
        dict,
    ),
    "prelu_sidecar": (
        nn.Sequential(nn.Linear(DIM, HIDDEN), nn.PReLU(), nn.Linear(HIDDEN, 1)),
        {"layers": ["linear", "prelu", "linear"]},
        dict,
    ),
    "lightning": (
        nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)),
        {},
        lambda state: {
            "state_dict": {f"model.{name}": tensor for name, tensor in state.items()},
            "hyper_parameters": argparse.Namespace(lr=1e-3),
            "epoch": 3,
        },
    ),
    "compiled_and_wrapped": (
        nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)),
        {},
        lambda state: {"model": {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}},
    ),
}
CLASSIFIERS = {
    name: dataclasses.replace(FAMILIES[family], settings={**FAMILIES[family].settings, "num_labels": 1, **settings})
    for name, family, settings in (
        *(
            (name, name, {})
            for name in ("bert", "xlm_roberta", "distilbert", "deberta_v2", "mpnet", "electra", "albert")
        ),
        ("modernbert_cls", "modernbert", {"classifier_pooling": "cls"}),
        ("modernbert_mean", "modernbert", {"classifier_pooling": "mean"}),
        ("eurobert", "eurobert", {"classifier_pooling": "mean"}),
        *((name, name, {}) for name in ("qwen3", "llama", "gemma")),
    )
}


def main() -> None:
    """Runs the comparison."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, help="write the figures to this file as one flat object")
    arguments = options.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        publish(dict(compare(Path(folder))), {}, arguments.json)


def compare(folder: Path) -> Iterator[tuple[str, float]]:
    """Yields the largest difference of a score, as a share of the largest score, for each format of heads."""
    embeddings = torch.randn(70, DIM, generator=torch.Generator().manual_seed(0))
    for name, (module, facts, wrap) in FORMATS.items():
        torch.manual_seed(1)
        for parameter in module.parameters():
            parameter.data.normal_(0, 0.3)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d):
                part.running_mean, part.running_var = (
                    torch.randn(part.num_features),
                    torch.rand(part.num_features) + 0.5,
                )
        path = folder / f"{name}.pt"
        torch.save(wrap(module.state_dict()), path)
        if facts:
            path.with_name(f"{path.name}.json").write_text(json.dumps(facts))
        with torch.inference_mode():
            expected = module.eval()(embeddings).numpy()
        yield name, difference(score([load_head(name, path)], embeddings.numpy()), expected)
    for name, family in CLASSIFIERS.items():
        yield f"classifier_{name}", difference(*classify(folder / name, family))


def classify(folder: Path, family: Family) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns the scores of a sequence classifier by its embeddings and head, and its own logits."""
    make_model(folder, family, "ForSequenceClassification")
    plain = folder / "plain"
    head = load_head("head", plain)
    settings = EncoderSettings(pooling=head.encoder["pooling"])
    encoder = load_encoder(resolve_model(str(plain)), settings, "cpu", 2048)
    tokenized = encoder.tokenize([*SHORT_TEXTS, prose(300)])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(plain).eval()
    with torch.inference_mode():
        logits = [model(input_ids=torch.from_numpy(ids)[None].long()).logits for ids in tokenized.input_ids]
    return score([head], encoder.encode(tokenized).embeddings()), torch.cat(logits).numpy()


def difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Returns the largest difference, as a share of the largest expected value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    main()
