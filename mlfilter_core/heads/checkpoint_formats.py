"""Checkpoints of PyTorch, Lightning, safetensors and Hugging Face to heads.

Facts that tensors do not show (layers, activation, task, labels, encoder) come from the metadata of a safetensors file,
or from JSON next to the weights.
"""

import functools
import json
import logging
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlfilter_core.compute.linear import ACTIVATIONS
from mlfilter_core.embedding_store.fingerprint import Fingerprint
from mlfilter_core.errors import HeadError, in_one_line
from mlfilter_core.heads.checkpoint_files import HeadFiles, find_head
from mlfilter_core.heads.checkpoint_tensors import HIDDEN_NAMES, OUTPUT_NAMES, WIDTH_NAMES, read_tensors
from mlfilter_core.heads.head import TASKS, Head
from mlfilter_core.heads.inferred_layers import Inferred, infer_layers
from mlfilter_core.heads.layer_notation import build_layers, read_eps
from mlfilter_core.heads.layers import Activation
from mlfilter_core.heads.modules import Modules, read_modules
from mlfilter_core.heads.sequence_classifiers import kind_of_classifier, read_classifier
from mlfilter_core.heads.trained_head import FORMAT

_log = logging.getLogger(__name__)

FIELDS = ("layers", "activation", "eps", "task", "labels", "encoder", "encoder_weights_sha256", "format")
JQL_MODULES = ["layer1", "layer2"]


def load_head(name: str, checkpoint: str | Path) -> Head:
    """Returns a head, read from its checkpoint.

    Args:
        name: The head's name in the job.
        checkpoint: A checkpoint as for `find_head`. The weights are safetensors or a PyTorch state dict, which may be
            part of a checkpoint of PyTorch Lightning or another trainer. A folder is one of the predecessor's, or a
            Hugging Face sequence classifier, whose layers after the encoder are used. Safetensors metadata or JSON next
            to the weights may state `layers` (all layers in order, as `mlfilter_core.heads.layer_notation` describes),
            or `activation` alone (between linear layers), `eps` of norms, `task` (one of `TASKS`), `labels` (names of
            targets or classes), `encoder` (fingerprint of the encoder that the head was trained on), and
            `encoder_weights_sha256` (digest of that encoder's weights alone). In metadata, lists and objects are JSON.

    Raises:
        HeadError: The file is missing or corrupted, contains code, can be several heads, or its facts do not fit its
            weights.
    """
    files = find_head(name, checkpoint)
    where = f"head {name}: {files.weights}"
    facts = _read_facts(files.facts, where)
    classifier = kind_of_classifier(facts, where)
    if classifier is not None:
        return read_classifier(name, files.weights, classifier, facts, where)
    tensors, stated = read_tensors(files.weights, where)
    _warn_of_unknown_fields(files, facts, where)
    facts = {**stated, **facts}
    _check_format(facts, where)
    is_saved_in_order = files.weights.suffix not in (".safetensors", ".json")  # an index lists names in any order
    modules = read_modules(tensors, is_saved_in_order, where)
    inferred = _layers(modules, facts, files.place_of_facts, where)
    eps = read_eps(facts["eps"], where) if "eps" in facts else None
    layers, assumed_eps = build_layers(list(inferred.notation), modules, eps, where)
    assumptions = (*inferred.assumptions, *assumed_eps, *modules.left_out)
    head = Head(name, layers, _trained_on(facts, where), assumptions=assumptions)
    _check_widths(facts, head.widths, where)
    if head.assumptions:
        _say_once(f"{where} does not state all of its layers; assumed: {'; '.join(head.assumptions)}")
    task = _one_of(TASKS, facts.get("task", "regression"), "task", where)
    _check_gives_logits(head, task, where)
    labels = _labels(facts, task, head.n_outputs, inferred.names, where)
    return Head(name, layers, head.encoder, task, labels, head.assumptions)


@functools.lru_cache(maxsize=1024)
def _say_once(message: str) -> None:
    """Logs a warning, once in this process: a job loads its heads several times."""
    _log.warning("%s", message)


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


def _warn_of_unknown_fields(files: HeadFiles, facts: Mapping[str, Any], where: str) -> None:
    """Warns of misspelled fields in a sidecar; the config.json of a folder has many of its own."""
    unknown = sorted(set(facts) - {*FIELDS, *WIDTH_NAMES, *HIDDEN_NAMES, *OUTPUT_NAMES}) if not files.is_folder else []
    if unknown:
        _say_once(
            f"{where}: {files.facts} has fields without a meaning: {', '.join(unknown)}; known: {', '.join(FIELDS)}"
        )


def _layers(modules: Modules, facts: Mapping[str, Any], place: Path, where: str) -> Inferred:
    activation = facts.get("activation")
    if "layers" in facts:
        if activation is not None:
            raise HeadError(f"{where}: both layers and activation are stated; leave out activation")
        if not isinstance(facts["layers"], list):
            raise HeadError(
                f'{where}: layers is {reprlib.repr(facts["layers"])}, not a list such as ["linear", "gelu"]'
            )
        return Inferred(facts["layers"])
    if activation is not None:
        activation = _one_of(tuple(ACTIVATIONS), activation, "activation", where)
    return infer_layers(modules, activation, _is_plain(modules, facts), place, where)


def _is_plain(modules: Modules, facts: Mapping[str, Any]) -> bool:
    """Whether the format is one whose heads are linear layers with an activation between them, ReLU if none is stated.

    These are the files of `train-head`, the folders of the predecessor, and the checkpoints of JQL
    (Jackal-AI/JQL-Edu-Heads).
    """
    is_jql = [module.name for module in modules.found] == JQL_MODULES and {"input_dim", "hidden_dim"} <= facts.keys()
    is_predecessor = {"embedding_dim", "num_tasks"} <= facts.keys()
    return facts.get("format") == FORMAT or is_jql or is_predecessor


def _check_gives_logits(head: Head, task: str, where: str) -> None:
    last = head.layers[-1]
    if task != "regression" and isinstance(last, Activation) and last.name in ("sigmoid", "softmax"):
        raise HeadError(
            f"{where}: task {task} applies its own {'softmax' if task == 'multiclass' else 'sigmoid'}, and layers ends "
            f"with {last.name}; leave out the last entry of layers"
        )


def _check_format(facts: Mapping[str, Any], where: str) -> None:
    written = facts.get("format", "pt")  # "pt" in Hugging Face's safetensors
    if str(written).startswith("mlfilter-head/") and written != FORMAT:
        raise HeadError(f"{where} has the format {written}; this version reads {FORMAT}. Update mlfilter")


def _check_widths(facts: Mapping[str, Any], widths: Sequence[int], where: str) -> None:
    hidden = widths[1] if len(widths) > 2 else None
    own = ((WIDTH_NAMES, widths[0]), (HIDDEN_NAMES, hidden), (OUTPUT_NAMES, widths[-1]))
    for names, width in own:
        stated = _width(facts, names)
        if stated is not None and width is not None and stated != width:
            raise HeadError(f"{where}: its settings say {names[0]} {stated}, its weights {width}; download it again")


def _width(facts: Mapping[str, Any], names: Sequence[str]) -> int | None:
    return next((facts[name] for name in names if isinstance(facts.get(name), int)), None)


def _one_of(known: Sequence[str] | Mapping[str, Any], value: Any, what: str, where: str) -> str:
    if value not in known:
        raise HeadError(f"{where}: unknown {what} {value!r}; known: {', '.join(known)}")
    return str(value)


def _labels(facts: Mapping[str, Any], task: str, n_outputs: int, names: Sequence[str], where: str) -> tuple[str, ...]:
    """Returns the names of targets or classes: those of heads side by side, else numbers for classes."""
    n_labels = 2 if task == "binary" and n_outputs == 1 else n_outputs
    if (task == "binary" and n_labels != 2) or (task == "multiclass" and n_labels < 2):
        raise HeadError(f"{where}: task {task}, but its last layer gives {n_outputs} values; correct task")
    numbers = [] if task == "regression" else [str(i) for i in range(n_labels)]
    labels = facts.get("labels", list(names) if len(names) == n_labels else numbers)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise HeadError(f"{where}: labels is {str(labels)[:100]}, not a list of strings; correct it")
    if not all(label.strip() for label in labels):
        raise HeadError(f"{where}: labels has an empty name; name every output")
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
