"""The heads' outputs as columns: scores, probabilities, labels, whole numbers, and ensembles of scores.

Knows nothing about files.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.config.annotation import Ensemble
from mlfilter_core.errors import HeadError
from mlfilter_core.heads.chunk_scores import CHUNKS_SUFFIX, DEFAULT, ChunkCombination, by_document

if TYPE_CHECKING:
    from mlfilter_core.heads.head import Head

LABEL_PREFIX = "label_"
INTEGER_PREFIX = "int_"
POSITIVE = 0.5  # lowest probability of a label that a document has
COMBINATIONS: Mapping[str, Callable[..., NDArray[np.float64]]] = {
    **{"mean": np.mean, "median": np.median, "min": np.min, "max": np.max}
}

Values = Sequence[Any] | NDArray[Any]
Scores = dict[str, NDArray[np.float32]]


class ScoreColumns:
    """The columns that a job writes beside its output keys.

    - A regression gives `score_<head>`, or `score_<head>_<target>` for each of several targets.
    - A binary classifier gives `score_<head>`, the probability of its second class, and `label_<head>`, the likelier
      class.
    - A multiclass classifier gives `score_<head>_<class>` for each class, and `label_<head>`, the likeliest class.
    - A multilabel classifier gives `score_<head>_<label>`, the probability of each label, and `label_<head>`, the list
      of labels whose probability is at least a half.
    - An ensemble gives `score_<ensemble>`. For agreement, that is the number of its scores that reach their thresholds,
      and `label_<ensemble>` is whether they are enough.
    - Where documents are divided into chunks, a head's score is combined from those of its chunks, and the rest is
      made from that. `score_<head>_chunks` is the list of the latter, where it is asked for.
    - A score with an integer scale is followed by `int_score_<name>`: rounded and clipped to the scale, as by
      FineWeb-Edu's classifier.

    Attributes:
        names: Names of the columns, in the order in which they are written.
        n_outputs: Number of outputs of all heads together.
    """

    def __init__(
        self,
        heads: Sequence["Head"],
        prefix: str,
        ensembles: Mapping[str, Ensemble],
        integer_scales: Mapping[str, tuple[int, int]],
        combine: ChunkCombination = DEFAULT,
        asked: Sequence[str] = (),
    ) -> None:
        """Determines the names of the columns.

        Args:
            heads: Heads in the order of their outputs.
            prefix: Text before the name of a score.
            ensembles: Ensembles by name, computed in this order; each may use those before it.
            integer_scales: Lowest and highest whole number of a score, by its name without prefix.
            combine: How the scores of chunks become the score of a document.
            asked: Output keys; those that are a head's score with `_chunks` after it give its lists.

        Raises:
            HeadError: Two columns would have the same name, or an ensemble or scale names an unknown score.
        """
        self._heads = heads
        self._prefix = prefix
        self._ensembles = ensembles
        self._integer_scales = integer_scales
        self._combine = combine
        self._asked = asked
        self.n_outputs = sum(head.n_outputs for head in heads)
        table = self.table(np.empty((0, self.n_outputs), np.float32))
        self.names = tuple(table)
        absent = [name for name in integer_scales if f"{INTEGER_PREFIX}{prefix}{name}" not in table]
        if absent:
            raise HeadError(f"integer_scales names {absent[0]}, which is not a score; known: {self._known(table)}")

    def table(self, outputs: NDArray[np.float32], starts: NDArray[np.int64] | None = None) -> dict[str, Values]:
        """Returns the values of each column.

        Args:
            outputs: float32 (n, n_outputs), finite.
            starts: int64 (n_documents,), place of the first of each document's chunks; None where each has one.
        """
        starts = np.arange(len(outputs)) if starts is None else starts
        table: dict[str, Values] = {}
        scores: Scores = {}
        start = 0
        for head in self._heads:
            part = outputs[:, start : start + head.n_outputs]
            start += head.n_outputs
            of_chunks = _scores(head, part)
            own = {name: self._combine.combine(values, starts) for name, values in of_chunks.items()}
            self._add_scores(table, scores, own)
            for name, values in of_chunks.items():
                column = f"{self._prefix}{name}{CHUNKS_SUFFIX}"
                if column in self._asked:
                    _add(table, column, by_document(values, starts))
            if head.task != "regression":
                _add(table, f"{LABEL_PREFIX}{head.name}", _predicted(head, list(own.values())))
        for name, ensemble in self._ensembles.items():
            absent = [member for member in ensemble.heads if member not in scores]
            if absent:
                raise HeadError(
                    f"the ensemble {name} names {absent[0]}, which is not a score; known: {self._known(table)}"
                )
            combined = _combine(ensemble, [scores[member] for member in ensemble.heads])
            self._add_scores(table, scores, {name: combined})
            if ensemble.combine == "agreement":
                _add(table, f"{LABEL_PREFIX}{name}", combined >= (ensemble.at_least or len(ensemble.heads)))
        return table

    @staticmethod
    def scores(table: Mapping[str, Values]) -> dict[str, NDArray[np.float32]]:
        """Returns the columns that are scores, without labels and whole numbers."""
        return {
            name: values
            for name, values in table.items()
            if isinstance(values, np.ndarray) and values.dtype == np.float32
        }

    def _add_scores(self, table: dict[str, Values], scores: Scores, own: Scores) -> None:
        for name, values in own.items():
            scores[name] = values
            _add(table, f"{self._prefix}{name}", values)
            if name in self._integer_scales:
                rounded = np.rint(np.clip(values, *self._integer_scales[name])).astype(np.int64)
                _add(table, f"{INTEGER_PREFIX}{self._prefix}{name}", rounded)

    def _known(self, table: Mapping[str, Values]) -> str:
        return ", ".join(name.removeprefix(self._prefix) for name in table if name.startswith(self._prefix))


def _add(table: dict[str, Values], column: str, values: Values) -> None:
    if column in table:
        raise HeadError(f"two columns would both be named {column}; rename one of the heads or ensembles")
    table[column] = values


def _scores(head: "Head", outputs: NDArray[np.float32]) -> Scores:
    if head.task == "binary":
        logits = outputs[:, 1] - outputs[:, 0] if head.n_outputs == 2 else outputs[:, 0]
        return {head.name: _sigmoid(logits)}
    if head.task == "multiclass":
        outputs = _softmax(outputs)
    elif head.task == "multilabel":
        outputs = _sigmoid(outputs)
    elif head.n_outputs == 1:
        return {head.name: outputs[:, 0]}
    labels = head.labels or [str(i) for i in range(head.n_outputs)]
    return {f"{head.name}_{label}": column for label, column in zip(labels, outputs.T, strict=True)}


def _predicted(head: "Head", probabilities: Sequence[NDArray[np.float32]]) -> list[Any]:
    """Returns the likeliest class of each row; of a multilabel head, the labels that are likelier than not."""
    if head.task == "multilabel":
        rows = zip(*(column >= POSITIVE for column in probabilities), strict=True)
        return [list(compress(head.labels, row)) for row in rows]
    is_binary = len(probabilities) == 1
    indices = probabilities[0] >= POSITIVE if is_binary else np.argmax(probabilities, axis=0)
    return [head.labels[i] for i in indices.astype(int).tolist()]


def _combine(ensemble: Ensemble, scores: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Returns float32 (n,), computed in float64."""
    members = np.stack(scores).astype(np.float64)
    if ensemble.combine == "agreement":
        combined = np.sum(members >= np.array([[ensemble.thresholds[name]] for name in ensemble.heads]), axis=0)
    elif ensemble.combine == "weighted":
        combined = np.average(members, axis=0, weights=[ensemble.weights[name] for name in ensemble.heads])
    else:
        combined = COMBINATIONS[ensemble.combine](members, axis=0)
    return np.asarray(combined, np.float32)


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64).clip(-700, 700)))  # exp(710) overflows
    return np.asarray(probabilities, np.float32)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    wide = logits.astype(np.float64)
    exponents = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True), np.float32)
