"""JSONL to filtered JSONL as a plain script: sentence-transformers, PyTorch, NumPy and orjson, nothing of this project.

It does the same as the three jobs of `pipeline.py`, which compares it with them: embeds all texts, scores them with two
heads, and keeps the documents whose first score reaches a percentile. It holds the corpus in memory, so that
sentence-transformers sorts all texts by length, which is its fastest way.

    python benchmarks/plain_pipeline.py MODEL_FOLDER HEADS_FOLDER SOURCES OUTPUT
"""

import argparse
from pathlib import Path

import numpy as np
import orjson
import torch
from sentence_transformers import SentenceTransformer

HEADS = ("education", "toxicity")
DIM, HIDDEN, MAX_LENGTH = 384, 1000, 512
PERCENTILE = 70


def main() -> None:
    """Filters a folder of JSONL files."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "heads", "sources", "output"):
        options.add_argument(name, type=Path)
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--dtype", default="float32")
    options.add_argument("--threads", type=int, default=2)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model, arguments.dtype)
    run(arguments.sources, arguments.output, model, load_heads(arguments.heads), arguments.batch_size)


def load_model(folder: Path, dtype: str) -> SentenceTransformer:
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    model.max_seq_length = MAX_LENGTH
    return model


def new_head() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(DIM, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 1))


def load_heads(folder: Path) -> list[torch.nn.Sequential]:
    heads = [new_head() for _ in HEADS]
    for head, name in zip(heads, HEADS, strict=True):
        head.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
    return heads


@torch.inference_mode()
def run(
    sources: Path, output: Path, model: SentenceTransformer, heads: list[torch.nn.Sequential], batch_size: int
) -> None:
    """Writes the kept documents of each file with their scores, and the embeddings and scores of all."""
    documents = {}
    for path in sorted(sources.glob("*.jsonl")):
        with open(path, "rb") as source:
            documents[path.name] = [orjson.loads(line) for line in source]

    texts = [document["text"] for of_file in documents.values() for document in of_file]
    embeddings = model.encode(texts, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False).float()
    scores = torch.cat([head(embeddings) for head in heads], dim=1).numpy()
    limit = np.percentile(scores[:, 0], PERCENTILE)

    output.mkdir(parents=True, exist_ok=True)
    np.savez(output / "embeddings.npz", embeddings=embeddings.numpy(), scores=scores)
    row = 0
    for name, of_file in documents.items():
        with open(output / name, "wb") as kept:
            for document in of_file:
                if scores[row, 0] >= limit:
                    named = {f"score_{head}": float(scores[row, i]) for i, head in enumerate(HEADS)}
                    kept.write(orjson.dumps({**document, **named}) + b"\n")
                row += 1


if __name__ == "__main__":
    main()
