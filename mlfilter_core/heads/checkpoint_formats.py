"""Checkpoints of PyTorch, Lightning, safetensors and Hugging Face to heads.

A checkpoint is read as tensors and plain values only: nothing in it is executed, and the library that wrote it is not
needed. Facts that tensors do not show (activation, task, labels, encoder) come from the metadata of a safetensors file,
or from JSON next to the weights.
"""

import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mlfilter_core.embedding_store.fingerprint import Fingerprint
from mlfilter_core.errors import HeadError, in_one_line
from mlfilter_core.heads.checkpoint_files import find_head
from mlfilter_core.heads.head import ACTIVATIONS, TASKS, Head
from mlfilter_core.heads.linear_layers import linear_layers
from mlfilter_core.heads.trained_head import FORMAT

_log = logging.getLogger(__name__)

# Keys under which training code stores the weights: PyTorch Lightning, other trainers.
WRAPPERS = ("state_dict", "model_state_dict")
# Names of widths in settings that training code stores with the weights: of Lightning, of the predecessor.
WIDTH_NAMES = ("input_dim", "embedding_dim")
HIDDEN_NAMES = ("hidden_dim",)
OUTPUT_NAMES = ("num_tasks",)


@dataclass(frozen=True)
class _Classifier:
    """Names of the layers after the CLS state in one kind of Hugging Face's sequence classifiers."""

    layers: tuple[str, str]
    activation: str


# By the configuration's model_type: transformers' models/<model_type>/modeling_<model_type>.py.
_ROBERTA = _Classifier(("classifier.dense", "classifier.out_proj"), "tanh")
CLASSIFIERS = {
    "albert": _Classifier(("albert.pooler", "classifier"), "tanh"),
    "bert": _Classifier(("bert.pooler.dense", "classifier"), "tanh"),
    "camembert": _ROBERTA,
    "deberta-v2": _Classifier(("pooler.dense", "classifier"), "gelu"),
    "distilbert": _Classifier(("pre_classifier", "classifier"), "relu"),
    "electra": _Classifier(("classifier.dense", "classifier.out_proj"), "gelu"),
    "mpnet": _ROBERTA,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}


def load_head(name: str, checkpoint: str | Path) -> Head:
    """Returns a head, read from its checkpoint: one linear layer or an MLP, with the shapes of the weights.

    Args:
        name: The head's name in the job.
        checkpoint: A checkpoint as for `find_head`. The weights are safetensors or a PyTorch state dict, which may be
            part of a checkpoint of PyTorch Lightning. A folder is one of the predecessor's, or a Hugging Face sequence
            classifier, whose layers after the CLS state are used. Safetensors metadata or JSON next to the
            weights may state `activation` (relu, gelu, tanh; default relu), `task` (regression, binary, multiclass),
            `labels` (names of targets or classes), `encoder` (fingerprint of the encoder that the head was trained on),
            and `encoder_weights_sha256` (digest of that encoder's weights alone). In metadata, lists and objects are
            JSON.

    Raises:
        HeadError: The file is missing or corrupted, contains code, is not a chain of linear layers, or its facts do
            not fit its weights.
    """
    files = find_head(name, checkpoint)
    where = f"head {name}: {files.weights}"
    facts = _read_facts(files.facts, where)
    if _is_sequence_classifier(facts):
        return _sequence_classifier(name, files.weights, facts, where)
    tensors, metadata = _read(files.weights, None, where)
    facts = {**metadata, **facts}
    _check_format(facts, where)
    is_saved_in_order = files.weights.suffix != ".safetensors"
    weights, biases = linear_layers(tensors, is_saved_in_order, where)
    _check_widths(facts, weights, where)
    if len(weights) > 1 and "activation" not in facts and not _width(facts, WIDTH_NAMES):
        _log.info("%s names no activation; ReLU is used between its %d layers", where, len(weights))
    task = _one_of(TASKS, facts.get("task", "regression"), "task", where)
    labels = _labels(facts, task, weights[-1].shape[0], where)
    activation = _one_of(ACTIVATIONS, facts.get("activation", "relu"), "activation", where)
    return Head(name, weights, biases, activation, _trained_on(facts, where), task, labels)


def _read_facts(path: Path | None, where: str) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HeadError(f"{where}: {path} next to it cannot be read as JSON ({in_one_line(error)}); fix it") from error
    if not isinstance(facts, dict):
        raise HeadError(f"{where}: {path} next to it is not a JSON object; fix it")
    return facts


def _read(path: Path, wanted: Sequence[str] | None, where: str) -> tuple[Mapping[str, torch.Tensor], dict[str, Any]]:
    """Returns the tensors of a file, and its facts about them.

    Args:
        path: The file.
        wanted: Names of tensors; those that the file lacks are left out. None returns all.
        where: The checkpoint, for messages.
    """
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path, wanted)
        tensors, facts = _read_pickle(path)
    except Exception as error:  # torch and safetensors raise RuntimeError, UnpicklingError, KeyError, ...
        raise HeadError(
            f"{where} does not load as plain tensors ({in_one_line(error)}); nothing in it was executed. Save it again "
            "with torch.save(head.state_dict(), path) or safetensors"
        ) from error
    return {key: tensors[key] for key in wanted if key in tensors} if wanted else tensors, facts


def _read_safetensors(path: Path, wanted: Sequence[str] | None) -> tuple[Mapping[str, torch.Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if wanted is None or name in wanted]  # noqa: SIM118, it is no mapping
        metadata = {key: _unwrapped(value) for key, value in (file.metadata() or {}).items()}
        return {name: file.get_tensor(name) for name in names}, metadata


def _unwrapped(value: str) -> Any:
    """Returns a value of the metadata, which are strings, with lists and objects as JSON."""
    if value[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _read_pickle(path: Path) -> tuple[Mapping[str, torch.Tensor], dict[str, Any]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed, as torch.save never does, and may unpack to any size")
    content = torch.load(path, map_location="cpu", weights_only=True)
    facts: dict[str, Any] = {}
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            settings: Any = content.get("hyper_parameters") or {}  # Lightning's name
            facts = {name: settings[name] for name in (*WIDTH_NAMES, *HIDDEN_NAMES, *OUTPUT_NAMES) if name in settings}
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise TypeError(f"it contains a {type(content).__name__}, not a state dict")
    return content, facts


def _is_sequence_classifier(facts: Mapping[str, Any]) -> bool:
    architectures = facts.get("architectures")
    return isinstance(architectures, list) and any(
        isinstance(name, str) and name.endswith("ForSequenceClassification") for name in architectures
    )


def _sequence_classifier(name: str, path: Path, facts: Mapping[str, Any], where: str) -> Head:
    kind = CLASSIFIERS.get(str(facts.get("model_type")))
    if kind is None:
        raise HeadError(
            f"{where}: a sequence classifier of model_type {facts.get('model_type')!r}; supported are "
            f"{', '.join(CLASSIFIERS)}. Save the layers after the encoder as a state dict"
        )
    if facts.get("problem_type") == "multi_label_classification":
        raise HeadError(f"{where}: a multi-label classifier is not supported; save a head for each label")
    wanted = [f"{layer}.{part}" for layer in kind.layers for part in ("weight", "bias")]
    tensors, _ = _read(path, wanted, where)
    missing = [key for key in wanted if key not in tensors]
    if missing:
        raise HeadError(
            f"{where}: {missing[0]} is missing, which a {facts['model_type']} classifier has; fetch it again"
        )
    weights, biases = linear_layers({key: tensors[key] for key in wanted}, True, where)
    n_outputs = weights[-1].shape[0]
    is_regression = n_outputs == 1 or facts.get("problem_type") == "regression"
    task = "regression" if is_regression else "binary" if n_outputs == 2 else "multiclass"
    names = facts.get("id2label")  # transformers omits it for two classes without names
    labels = [str(names.get(str(i), i)) if isinstance(names, dict) else str(i) for i in range(n_outputs)]
    # Its input is the encoder's state of the first token, not normalized.
    encoder = {"model": f"{facts.get('_name_or_path') or path.parent.name} (CLS state)", "pooling": "cls"}
    return Head(
        *(name, weights, biases, kind.activation, {**encoder, "is_normalized": False}, task),
        tuple(labels) if n_outputs > 1 else (),
    )


def _check_format(facts: Mapping[str, Any], where: str) -> None:
    written = facts.get("format", "pt")  # "pt" in Hugging Face's safetensors
    if str(written).startswith("mlfilter-head/") and written != FORMAT:
        raise HeadError(f"{where} has the format {written}; this version reads {FORMAT}. Update mlfilter")


def _check_widths(facts: Mapping[str, Any], weights: Sequence[torch.Tensor], where: str) -> None:
    hidden = weights[0].shape[0] if len(weights) > 1 else None
    own = ((WIDTH_NAMES, weights[0].shape[1]), (HIDDEN_NAMES, hidden), (OUTPUT_NAMES, weights[-1].shape[0]))
    for names, width in own:
        stated = _width(facts, names)
        if stated is not None and width is not None and stated != width:
            raise HeadError(f"{where}: its settings say {names[0]} {stated}, its weights {width}; fetch it again")


def _width(facts: Mapping[str, Any], names: Sequence[str]) -> int | None:
    return next((facts[name] for name in names if isinstance(facts.get(name), int)), None)


def _one_of(known: Sequence[str] | Mapping[str, Any], value: Any, what: str, where: str) -> str:
    if value not in known:
        raise HeadError(f"{where}: unknown {what} {value!r}; known: {', '.join(known)}")
    return str(value)


def _labels(facts: Mapping[str, Any], task: str, n_outputs: int, where: str) -> tuple[str, ...]:
    """Returns the names of targets or classes; by default, classes are named by their numbers."""
    n_labels = 2 if task == "binary" and n_outputs == 1 else n_outputs
    if (task == "binary" and n_labels != 2) or (task == "multiclass" and n_labels < 2):
        raise HeadError(f"{where}: task {task}, but its last layer gives {n_outputs} values; correct task")
    labels = facts.get("labels", [] if task == "regression" else [str(i) for i in range(n_labels)])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise HeadError(f"{where}: labels is {str(labels)[:100]}, not a list of strings; correct it")
    if labels and (len(labels) != n_labels or len(set(labels)) != n_labels):
        raise HeadError(
            f"{where}: {len(set(labels))} different labels, but its last layer gives {n_labels}; correct labels"
        )
    return tuple(labels)


def _trained_on(facts: Mapping[str, Any], where: str) -> Fingerprint:
    if "encoder" not in facts:
        weights = facts.get("encoder_weights_sha256")
        return {"weights_sha256": weights} if weights else {}
    if not isinstance(facts["encoder"], dict):
        raise HeadError(f"{where}: its `encoder` is not a JSON object; save the head again")
    return dict(facts["encoder"])
