"""Checkpoints to heads, whoever wrote them.

A checkpoint is read as tensors and plain values only: nothing in it is executed, and the library that wrote it is not
needed. What the tensors do not tell (activation, task, labels, encoder) is in the metadata of a safetensors file, or in
JSON beside the weights.
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

# Keys under which training code wraps the weights; PyTorch Lightning and the Trainer of others.
WRAPPERS = ("state_dict", "model_state_dict")
# What training code keeps of its settings beside the weights: Lightning, then the predecessor's config.json.
WIDTH_NAMES = ("input_dim", "embedding_dim")
HIDDEN_NAMES = ("hidden_dim",)
OUTPUT_NAMES = ("num_tasks",)


@dataclass(frozen=True)
class _Classifier:
    """Where Hugging Face's sequence classifiers of a kind have the layers that follow the CLS state."""

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
    """Reads a head: one linear layer or an MLP, whose shapes the weights tell.

    Args:
        name: What the job calls it.
        checkpoint: As `find_head` takes it. The weights are a PyTorch state dict, whole or in a checkpoint of PyTorch
            Lightning, or safetensors; a folder is one of the predecessor's or a Hugging Face sequence classifier,
            whose layers after the CLS state are taken. Safetensors metadata or JSON beside the weights may say:
            `activation` (relu, gelu, tanh; ReLU otherwise), `task` (regression, binary, multiclass), `labels` (of
            targets or classes), and as `encoder` the fingerprint of the encoder that the head was trained on, or as
            `encoder_weights_sha256` the digest of its weights alone. In metadata, lists and objects are JSON.

    Raises:
        HeadError: The file is missing or corrupted, holds code, is not a chain of linear layers, or its facts do
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
        _log.info("%s names no activation; ReLU is taken between its %d layers", where, len(weights))
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
        raise HeadError(f"{where}: {path} beside it cannot be read as JSON ({in_one_line(error)}); mend it") from error
    if not isinstance(facts, dict):
        raise HeadError(f"{where}: {path} beside it is not a JSON object; mend it")
    return facts


def _read(path: Path, wanted: Sequence[str] | None, where: str) -> tuple[Mapping[str, torch.Tensor], dict[str, Any]]:
    """Returns the tensors of a file, or some of them where it has them, and what the file says of them."""
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
    """Metadata are strings; lists and objects are JSON in them."""
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
            settings: Any = content.get("hyper_parameters") or {}  # of Lightning
            facts = {name: settings[name] for name in (*WIDTH_NAMES, *HIDDEN_NAMES, *OUTPUT_NAMES) if name in settings}
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise TypeError(f"it holds a {type(content).__name__}, not a state dict")
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
            f"{where}: a sequence classifier of model_type {facts.get('model_type')!r}; known are those of "
            f"{', '.join(CLASSIFIERS)}. Save the layers after the encoder as a state dict"
        )
    if facts.get("problem_type") == "multi_label_classification":
        raise HeadError(f"{where}: a classifier of several labels at once; save a head for each label")
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
    names = facts.get("id2label")  # transformers leaves it out where nobody named two classes
    labels = [str(names.get(str(i), i)) if isinstance(names, dict) else str(i) for i in range(n_outputs)]
    # It takes the state of the first token as the encoder leaves it.
    encoder = {"model": f"{facts.get('_name_or_path') or path.parent.name} (CLS state)", "pooling": "cls"}
    return Head(
        *(name, weights, biases, kind.activation, {**encoder, "is_normalized": False}, task),
        tuple(labels) if n_outputs > 1 else (),
    )


def _check_format(facts: Mapping[str, Any], where: str) -> None:
    written = facts.get("format", "pt")  # which Hugging Face's safetensors say
    if str(written).startswith("mlfilter-head/") and written != FORMAT:
        raise HeadError(f"{where} is of the format {written}; this version reads {FORMAT}. Update mlfilter")


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
    """Returns the names of targets or classes; those of classes are their numbers where nothing is said."""
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
