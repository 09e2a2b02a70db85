"""Checks one trained head: its files, and its metrics and held-out documents against the embeddings and labels."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.config.training import HEADS_DIR
from mlfilter_core.errors import HeadError
from mlfilter_core.heads.trained_head import TENSORS_SHA256, TRAINING, tensors_sha256
from mlfilter_core.training.train_request import FIGURE_SUFFIX, HELD_OUT_SUFFIX, METRICS_SUFFIX, SUFFIX
from mlfilter_core.verification.discrepancies import FileCheck, Findings
from mlfilter_core.verification.held_out_documents import HeldOutCheck
from mlfilter_core.verification.output_kinds import Output, OutputKind, RelatedFiles, VerifyRequest, without_suffix
from mlfilter_core.verification.stated_facts import StatedFacts, UnreadableOutputError

AGAIN = "train it again"
SUFFIXES = (SUFFIX, METRICS_SUFFIX, FIGURE_SUFFIX, HELD_OUT_SUFFIX)
COUNTS = ("documents", "trained_on", "held_out")


@dataclass(frozen=True)
class StoredHead:
    """The content of a head's file.

    Attributes:
        tensors: Tensors by name: `0.weight`, `0.bias`, `2.weight`, ...
        metadata: The rest, as strings.
        training: Record of the training.
    """

    tensors: Mapping[str, NDArray[np.float32]]
    metadata: Mapping[str, str]
    training: Mapping[str, Any]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(json.loads(self.metadata.get("labels", "[]")))

    def outputs(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the outputs for embeddings, computed in float64 without the code that trains and scores."""
        from scipy.special import erf

        activations: dict[str, Callable[[Any], Any]] = {
            "relu": lambda x: np.maximum(x, 0),
            "gelu": lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2))),
            "tanh": np.tanh,
        }
        values = embeddings.astype(np.float64)
        for i in range(0, len(self.tensors), 2):
            values = activations[self.metadata["activation"]](values) if i else values
            values = values @ self.tensors[f"{i}.weight"].T.astype(np.float64) + self.tensors[f"{i}.bias"]
        return values.astype(np.float32)


def find_head(relative: str) -> Output | None:
    """Returns the head that a file is, or was written beside."""
    top, _, name = relative.partition("/")
    if top != HEADS_DIR or "/" in name or not name.endswith(SUFFIXES):
        return None
    stem = without_suffix(name, SUFFIXES)
    return Output(f"{HEADS_DIR}/{stem}{SUFFIX}", stem)


def read_head(relative: str, request: VerifyRequest) -> StatedFacts:
    """Returns what a head states.

    Raises:
        UnreadableOutputError: The file is missing or broken, or was not trained here.
    """
    path = request.output_dir / relative
    try:
        stored = load_stored_head(path)
        n_bytes = sum(beside.stat().st_size for beside in _files(path) if beside.exists())
        return StatedFacts(n_bytes, int(stored.training["documents"]), training=stored.training)
    except (HeadError, OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableOutputError(str(error)) from error


def load_stored_head(path: Path) -> StoredHead:
    """Returns the content of a head's file.

    Raises:
        HeadError: It cannot be read, or has no record of a training.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        return StoredHead(tensors, metadata, json.loads(metadata[TRAINING]))
    except Exception as error:  # safetensors raises its own errors
        raise HeadError(f"{path} is not a head that was trained here ({type(error).__name__}: {error})") from error


def check_head(relative: str, request: VerifyRequest, related: RelatedFiles) -> FileCheck:
    """Checks one head; never raises for what is wrong with it.

    Args:
        relative: The file of the head, below the output folder; it may be missing.
        request: Request of the verification.
        related: Ignored: the head states a digest of its embeddings, which are found by it.
    """
    check = _Check(relative, request, Findings(request.output_dir / relative, AGAIN))
    with check.findings.collecting():
        check.run()
    return check.result()


@dataclass
class _Check:
    """The check of one head, with its findings so far."""

    relative: str
    request: VerifyRequest
    findings: Findings
    not_checked: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.findings.path

    def run(self) -> None:
        missing = [path.name for path in _files(self.path) if not path.exists()]
        if missing:
            self.findings.add("missing", f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
        if not self.path.exists():
            return
        stored = load_stored_head(self.path)
        training = stored.training
        if training["documents"] != training["trained_on"] + training["held_out"]:
            self.findings.add("counts", "it states " + ", ".join(f"{training[name]:,} {name}" for name in COUNTS))
        with self.findings.collecting():
            self._check_metrics_file(training)
        with self.findings.collecting():
            self._check_figure()
        if not self.request.read_content:
            return
        self._check_tensors(stored)
        with self.findings.collecting():
            held_out = HeldOutCheck(self.request, training, self.findings, self.path.with_suffix(HELD_OUT_SUFFIX))
            if (why := held_out.run(stored.metadata["task"], stored.labels, stored.outputs)) is not None:
                self.not_checked.append(why)

    def result(self) -> FileCheck:
        n_bytes = sum(path.stat().st_size for path in _files(self.path) if path.exists())
        return FileCheck(
            self.relative,
            self.findings.problems(),
            tuple(self.not_checked),
            n_bytes=n_bytes if self.request.read_content else 0,
        )

    def _check_metrics_file(self, training: Mapping[str, Any]) -> None:
        path = self.path.with_suffix(METRICS_SUFFIX)
        if path.exists() and (written := json.loads(path.read_bytes())) != training:
            names = sorted(name for name in {**written, **training} if written.get(name) != training.get(name))
            self.findings.add("metrics", f"{path.name} and the head differ in {', '.join(names)}")

    def _check_figure(self) -> None:
        path = self.path.with_suffix(FIGURE_SUFFIX)
        if path.exists():
            try:
                ElementTree.fromstring(path.read_bytes())
            except ElementTree.ParseError as error:
                self.findings.add("figure", f"{path.name} is no picture ({error})")

    def _check_tensors(self, stored: StoredHead) -> None:
        if not all(np.isfinite(tensor).all() for tensor in stored.tensors.values()):
            self.findings.add("tensors", "has weights that are not finite")
        stated = stored.metadata.get(TENSORS_SHA256)  # heads of earlier releases have none
        if stated is not None and stated != tensors_sha256(stored.tensors):
            self.findings.add("tensors", "its weights changed since it was trained: they have another sha256")


def _files(head: Path) -> Iterator[Path]:
    return (head.with_name(head.name.removesuffix(SUFFIX) + suffix) for suffix in SUFFIXES)


TRAINED_HEADS = OutputKind("heads", find_head, read_head, check_head, again=AGAIN)
