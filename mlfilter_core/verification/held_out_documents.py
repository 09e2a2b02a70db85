"""Proves the metrics of a head: from its held-out documents, which it was not trained on."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.config.training import HeadRecipe
from mlfilter_core.corpus.records import read_records
from mlfilter_core.embedding_store.layout import EMBEDDING_SUFFIXES
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import EmbeddingFileError
from mlfilter_core.files.identity import file_sha256
from mlfilter_core.training.head_task import HeadTask
from mlfilter_core.training.held_out import document_ids
from mlfilter_core.training.label_table import label_files, read_labels
from mlfilter_core.training.labelled_rows import LabelledRows, find_labelled_rows
from mlfilter_core.training.metrics import head_metrics
from mlfilter_core.training.row_buffers import RowBuffers
from mlfilter_core.training.splits import is_held_out
from mlfilter_core.verification.discrepancies import Findings
from mlfilter_core.verification.output_kinds import VerifyRequest

NO_EMBEDDINGS = "against the embeddings that they were trained on, which are not in this folder"
NO_LABELS = "against the labels that they were trained on, which moved or changed"
# Outputs in float32 and in float64 may put documents of nearly equal scores in another order.
TOLERANCE = 1e-3
BUFFER_BYTES = 64 << 20

Outputs = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class HeldOutCheck:
    """The check of a head's held-out documents.

    Attributes:
        request: Request of the verification.
        training: Record of the training.
        findings: Collects the problems.
        path: File of the held-out documents.
    """

    request: VerifyRequest
    training: Mapping[str, Any]
    findings: Findings
    path: Path

    def run(self, task: str, names: Sequence[str], outputs: Outputs) -> str | None:
        """Checks the documents and the metrics; returns what could not be checked.

        Args:
            task: Task of the head.
            names: Names of its targets or classes.
            outputs: Returns the outputs of the head for embeddings.
        """
        lines = self._read_lines()
        files = self._find_embeddings()
        if not files:
            return NO_EMBEDDINGS
        found = self._find_labelled(files)
        if found is None:
            return NO_LABELS
        request = self.training["request"]
        is_held = is_held_out(found.hashes, request["test_fraction"], request["split_seed"])
        n_both = len(np.intersect1d(found.hashes[is_held], found.hashes[~is_held]))
        counts = {"documents": len(is_held), "held_out": int(is_held.sum()), "trained_on": int((~is_held).sum())}
        for name, n in counts.items():
            if self.training[name] != n:
                self.findings.add(name, f"it states {self.training[name]:,} {name}, and there are {n:,}")
        if n_both:
            self.findings.add("both", f"{n_both:,} texts are both trained on and held out")
        places, labels = found.places.select(is_held), found.labels[is_held]
        self._compare_lines(lines, document_ids(places), labels)
        scored = [outputs(rows) for _, rows in RowBuffers(places, found.dim, BUFFER_BYTES).in_order()]
        values = np.concatenate(scored)
        self._compare_metrics(head_metrics(HeadTask(task, values.shape[1], tuple(names)), values, labels))
        return None

    def _read_lines(self) -> list[tuple[str, list[float]]]:
        """Returns id and labels of each line of the file."""
        lines: list[tuple[str, list[float]]] = []
        if not self.path.exists():  # reported
            return lines
        for number, record in read_records(self.path):
            label = record.get("label") if isinstance(record, dict) else None
            values = list(label.values()) if isinstance(label, dict) else [label]
            if not isinstance(record, dict) or not all(isinstance(value, float) for value in values):
                self.findings.add("held_out", f"{self.path.name}, line {number}: no document_id with a label")
                continue
            lines.append((str(record.get("document_id")), values))  # type: ignore[arg-type]
        if len(lines) != self.training["held_out"]:
            stated = f"it states {self.training['held_out']:,} held-out documents"
            self.findings.add("held_out lines", f"{stated}, and {self.path.name} has {len(lines):,}")
        return lines

    def _find_embeddings(self) -> tuple[Path, ...]:
        """Returns the files of the folder whose digest is recorded; none if no folder has it."""
        digests: defaultdict[Path, Any] = defaultdict(hashlib.sha256)
        files: dict[Path, list[Path]] = defaultdict(list)
        for path in sorted(self._embeddings(), key=lambda path: path.relative_to(self.request.output_dir).as_posix()):
            try:
                with EmbeddingFile(path, self.training["request"]["group"]) as file:
                    identity = json.dumps(file.identity(), sort_keys=True).encode()
            except (EmbeddingFileError, OSError):  # the check of that file reports it
                continue
            for folder in path.relative_to(self.request.output_dir).parents:
                digests[folder].update(identity)
                files[folder].append(path)
        wanted = self.training["embeddings_sha256"]
        return next((tuple(files[folder]) for folder, digest in digests.items() if digest.hexdigest() == wanted), ())

    def _embeddings(self) -> Iterator[Path]:
        for path in self.request.output_dir.rglob("*"):
            relative = path.relative_to(self.request.output_dir)
            if path.name.endswith(EMBEDDING_SUFFIXES) and not any(part.startswith(".") for part in relative.parts):
                yield path

    def _find_labelled(self, files: tuple[Path, ...]) -> LabelledRows | None:
        written = self.training["request"]
        recipe = HeadRecipe(**{name: written[name] for name in HeadRecipe.model_fields if name in written})
        by_id = None
        if recipe.labels_path is not None:
            if not recipe.labels_path.exists():
                return None
            paths = label_files(recipe.labels_path)
            if [file_sha256(path) for path in paths] != self.training["labels_sha256"]:
                return None
            by_id = read_labels(paths, recipe.label_key, recipe.id_key, recipe.scale).by_id
        keys = (recipe.label_key,) if isinstance(recipe.label_key, str) else recipe.label_key
        return find_labelled_rows(files, written["group"], keys, by_id, recipe.scale)

    def _compare_lines(
        self, lines: Sequence[tuple[str, list[float]]], ids: Iterator[str], labels: NDArray[np.float32]
    ) -> None:
        expected = list(zip(ids, labels.tolist(), strict=True))
        trained_on = {name for name, _ in lines} - {name for name, _ in expected}
        if trained_on:
            names = ", ".join(sorted(trained_on)[:3])
            self.findings.add("not held out", f"{self.path.name} has documents that were not held out: {names}")
        for i, (line, wanted) in enumerate(zip(lines, expected, strict=False)):
            if line != wanted:
                where = f"{self.path.name}, line {i + 1}"
                self.findings.add(
                    "held_out", f"{where}: {line[0]} with {line[1]}, and not {wanted[0]} with {wanted[1]}"
                )

    def _compare_metrics(self, metrics: Mapping[str, float | None]) -> None:
        stated = self.training["metrics"]
        for name in {**stated, **metrics}:
            one, other = stated.get(name), metrics.get(name)
            if one is None or other is None:
                are_same = one == other
            else:
                are_same = abs(one - other) <= TOLERANCE * max(1.0, abs(other))
            if not are_same:
                self.findings.add(f"metric {name}", f"it states {name} {one}, and its held-out documents give {other}")
