"""Trains the example heads on the labels of the example corpus.

    python flows/embed.py --config deployments/local/embed.yaml
    python examples/train_heads.py

`education` is a ridge regression, `toxicity` a small MLP: one of each kind and file format that the
annotation pipeline takes. Fifty documents make a demonstration, not a filter. The same embeddings give
the same heads.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from mlfilter_core.corpus import EMBEDDING_SUFFIXES, find_files
from mlfilter_core.embedding_store import LABELS, EmbeddingFile
from mlfilter_core.fingerprint import Fingerprint, differences, fingerprint

Embeddings = NDArray[np.float32]
RIDGE_PENALTY = 0.3  # the best of 0.03, 0.1, 0.3, 1 and 3 by leave-one-out error on the example corpus
HIDDEN = 16
EPOCHS = 300


def main() -> None:
    """Reads the embedded example corpus, writes two heads, prints how well they do on unseen documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path, default=Path("outputs/example/embeddings"))
    parser.add_argument("--output", type=Path, default=Path("examples/heads"))
    arguments = parser.parse_args()
    embeddings, labels, encoder = read_labelled(arguments.embeddings)
    education, toxicity = labels.T
    arguments.output.mkdir(exist_ok=True)
    save_file(
        ridge(embeddings, education),
        arguments.output / "education.safetensors",
        {"activation": "relu", "encoder": json.dumps(encoder)},
    )
    torch.save(mlp(embeddings, toxicity).state_dict(), arguments.output / "toxicity.pt")
    unseen = leave_one_out(embeddings, education)
    print(f"{len(embeddings)} documents; education, each document left out once: mean error", end=" ")
    print(f"{np.abs(unseen - education).mean():.2f}, correlation {np.corrcoef(unseen, education)[0, 1]:.2f}")


def read_labelled(folder: Path) -> tuple[Embeddings, Embeddings, Fingerprint]:
    """Returns float32 (n, dim) embeddings, (n, 2) labels, and the fingerprint of their encoder."""
    embeddings, labels, encoders = [], [], []
    for path in find_files(folder, "**/*", EMBEDDING_SUFFIXES):
        with EmbeddingFile(path.path, "train") as file:
            rows = slice(0, file.n_rows)
            embeddings.append(file.embeddings(rows))
            labels.append(file.array(LABELS, rows))
            encoders.append(fingerprint(file.provenance))
    assert not any(differences(encoders[0], encoder) for encoder in encoders)
    return np.concatenate(embeddings), np.concatenate(labels), encoders[0]


def ridge(embeddings: Embeddings, labels: Embeddings) -> dict[str, torch.Tensor]:
    """Returns the state dict of a linear layer that minimises squared error plus a penalty on its weights."""
    centre = embeddings.mean(axis=0)
    centred = embeddings - centre
    gram = centred.T @ centred + RIDGE_PENALTY * np.eye(embeddings.shape[1], dtype=np.float32)
    weight = np.linalg.solve(gram, centred.T @ (labels - labels.mean()))
    bias = labels.mean() - centre @ weight
    return {
        "linear.weight": torch.from_numpy(weight[None].astype(np.float32)),
        "linear.bias": torch.tensor([bias], dtype=torch.float32),
    }


def leave_one_out(embeddings: Embeddings, labels: Embeddings) -> Embeddings:
    """Returns for each document the score of a ridge head that was trained on the others."""
    scores = []
    for i in range(len(embeddings)):
        others = np.arange(len(embeddings)) != i
        head = ridge(embeddings[others], labels[others])
        scores.append(embeddings[i] @ head["linear.weight"][0].numpy() + head["linear.bias"].item())
    return np.array(scores, np.float32)


def mlp(embeddings: Embeddings, labels: Embeddings) -> torch.nn.Sequential:
    """Returns a trained MLP with one hidden layer."""
    torch.manual_seed(0)
    head = torch.nn.Sequential(
        torch.nn.Linear(embeddings.shape[1], HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 1)
    )
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.002)
    inputs, targets = torch.from_numpy(embeddings), torch.from_numpy(labels)[:, None]
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(head(inputs), targets).backward()
        optimizer.step()
    return head


if __name__ == "__main__":
    main()
