"""What heads lose on embeddings that take fewer bytes: int8, fewer dimensions, and both.

MiniLM embeddings of a labelled corpus, stored in each way. On each, a head is trained with its defaults, on the same
five splits; the figure is the mean of Spearman's correlation on the held-out fifths, and its difference from that of
float32 and all dimensions. MiniLM was not trained for fewer dimensions (Matryoshka); a model that was loses less.

    python benchmarks/narrow_embeddings.py --corpus FILE --json benchmarks/results/narrow_embeddings.json
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import parser, publish
from train_head import N_SPLITS, embed, ours

from mlfilter_core.embedding_store.layout import EMBEDDING_SCALE, EMBEDDINGS
from mlfilter_core.embedding_store.reader import EmbeddingFile

WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "int8": {"embedding_dtype": "int8"},
    "dim_256": {"embedding_dim": 256},
    "dim_256_int8": {"embedding_dim": 256, "embedding_dtype": "int8"},
}


def main() -> None:
    """Embeds the corpus in each way, trains the heads, and prints their correlations."""
    options = parser(__doc__)
    options.add_argument("--corpus", type=Path, required=True, help="JSONL file with text and a label at scores.score")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    figures: dict[str, float] = {}
    for name, changes in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = embed(arguments.corpus, Path(folder), **changes)
            figures[f"{name}_spearman"] = statistics.mean(ours(path, Path(folder), seed) for seed in range(N_SPLITS))
            figures[f"{name}_bytes_per_document"] = stored_bytes(path)
        figures[f"{name}_loss"] = figures["float32_spearman"] - figures[f"{name}_spearman"]
    publish(figures, {"corpus": arguments.corpus.name, "threads": str(arguments.threads)}, arguments.json)


def stored_bytes(path: Path) -> float:
    """Returns the bytes of one embedding, with its scale."""
    with EmbeddingFile(path, "train") as file:
        names = [name for name in (EMBEDDINGS, EMBEDDING_SCALE) if name in file.names()]
        return sum(file.array(name, slice(0, 1)).nbytes for name in names)


if __name__ == "__main__":
    main()
