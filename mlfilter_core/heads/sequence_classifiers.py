"""The layers after the encoder of Hugging Face's sequence classifiers, in the notation for layers.

Each takes one state of the encoder: of the first token, of the last, or the mean of all.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlfilter_core.encoder.model_files import weights_digest
from mlfilter_core.errors import HeadError
from mlfilter_core.heads.checkpoint_tensors import read_some_tensors
from mlfilter_core.heads.head import Head
from mlfilter_core.heads.layer_notation import DEFAULT_EPS, build_layers, read_eps
from mlfilter_core.heads.modules import LAYER_NORM, read_modules

CLS, MEAN, LAST = "cls", "mean", "last_token"
STATE_NAMES = {CLS: "CLS state", MEAN: "mean of the states", LAST: "last state"}


@dataclass(frozen=True)
class Classifier:
    """The layers after the encoder in one kind of classifier.

    Attributes:
        layers: Names of modules in the file, with their kind where it is not clear, and activations; `*` stands for the
            name of the encoder, and `$hidden_act` for that field of the configuration.
        pooling: Pooling of the states, or `$` and the field of the configuration that states it.
        eps: Field of the configuration with the epsilon of a norm.
        defaults: Values of these fields where the configuration leaves them out, as transformers has them.
    """

    layers: tuple[str, ...]
    pooling: str = CLS
    eps: str = ""
    defaults: tuple[tuple[str, str], ...] = ()


_POOLER = Classifier(("*.pooler.dense", "tanh", "classifier"))
_ROBERTA = Classifier(("classifier.dense", "tanh", "classifier.out_proj"))
_HIDDEN_ACT = Classifier(("classifier.dense", "$hidden_act", "classifier.out_proj"), defaults=(("hidden_act", "gelu"),))
_DEBERTA = Classifier(("pooler.dense", "$pooler_hidden_act", "classifier"), defaults=(("pooler_hidden_act", "gelu"),))
_MODERNBERT = ("head.dense", "$classifier_activation", "head.norm: layer_norm", "classifier")
_ACTIVATION = ("classifier_activation", "gelu")
_SCORE = Classifier(("score",), LAST)

# By the configuration's model_type: transformers' models/<model_type>/modeling_<model_type>.py. `new` is GTE's own
# code, of which `gte` is the version in transformers; jina-embeddings-v3's own code says xlm-roberta.
CLASSIFIERS: dict[str, Classifier] = {
    **dict.fromkeys(
        (
            *("bert", "ernie", "fnet", "gte", "megatron-bert", "new", "nomic_bert", "rembert", "roc_bert"),
            "squeezebert",
        ),
        _POOLER,
    ),
    **dict.fromkeys(
        (
            *("camembert", "data2vec-text", "jina_embeddings_v3", "mpnet", "roberta", "roberta-prelayernorm"),
            *("xlm-roberta", "xlm-roberta-flash", "xlm-roberta-xl"),
        ),
        _ROBERTA,
    ),
    **dict.fromkeys(("big_bird", "convbert", "nystromformer"), _HIDDEN_ACT),
    **dict.fromkeys(("deberta", "deberta-v2"), _DEBERTA),
    "albert": Classifier(("*.pooler", "tanh", "classifier")),
    "distilbert": Classifier(("pre_classifier", "relu", "classifier")),
    "electra": Classifier(("classifier.dense", "gelu", "classifier.out_proj")),
    "eurobert": Classifier(
        ("dense", "gelu", "classifier"), "$classifier_pooling", defaults=(("classifier_pooling", "late"),)
    ),
    "modernbert": Classifier(
        _MODERNBERT, "$classifier_pooling", "norm_eps", (_ACTIVATION, ("classifier_pooling", CLS))
    ),
    "modernbert-decoder": Classifier(_MODERNBERT, LAST, "norm_eps", (_ACTIVATION,)),
    **dict.fromkeys(
        (
            *("arcee", "bloom", "deepseek_v2", "deepseek_v3", "diffllama", "exaone4", "falcon", "gemma", "gemma2"),
            *("gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "helium"),
            *("jamba", "jetmoe", "llama", "ministral", "ministral3", "mistral", "mixtral", "mpt", "nemotron", "olmo"),
            *("olmo2", "olmo3", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
            *("qwen3_next", "seed_oss", "smollm3", "stablelm", "starcoder2"),
        ),
        _SCORE,
    ),
}
# Names of activations in configurations, as in transformers' ACT2FN, and ours.
ACTIVATION_NAMES = {
    **{name: name for name in ("gelu", "relu", "relu6", "sigmoid", "silu", "tanh", "mish", "leaky_relu", "quick_gelu")},
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate"), "gelu_tanh"),
    **{"gelu_python": "gelu", "swish": "silu", "relu2": "relu_squared"},
}
POOLINGS = {CLS: CLS, "bos": CLS, MEAN: MEAN, "mean_pooling": MEAN}
# NVIDIA's classifiers (nvidia/quality-classifier-deberta, nvidia/domain-classifier): a DeBERTa `model`, and `fc` on the
# state of the first token, followed by a softmax. Their config.json names no model type.
NVIDIA = Classifier(("fc",))


def kind_of_classifier(facts: Mapping[str, Any], where: str) -> Classifier | None:
    """Returns the kind of classifier that a `config.json` describes; None if it describes none.

    Raises:
        HeadError: It is of an unknown kind.
    """
    architectures = facts.get("architectures")
    names = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    if any(name.endswith("ForSequenceClassification") for name in names):
        kind = CLASSIFIERS.get(str(facts.get("model_type")))
        if kind is None:
            raise HeadError(
                f"{where}: a sequence classifier of model_type {facts.get('model_type')!r}; supported are "
                f"{', '.join(sorted(CLASSIFIERS))}. Save the layers after the encoder as a state dict"
            )
        return kind
    is_nvidia = "model_type" not in facts and "base_model" in facts and isinstance(facts.get("id2label"), Mapping)
    return NVIDIA if is_nvidia and not names else None


def read_classifier(name: str, path: Path, kind: Classifier, facts: Mapping[str, Any], where: str) -> Head:
    """Returns the layers after the encoder as a head.

    Args:
        name: The head's name in the job.
        path: File of the weights.
        kind: Result of `kind_of_classifier`.
        facts: The content of `config.json`.
        where: The checkpoint, for messages.

    Raises:
        HeadError: The file cannot be read or lacks a layer, or the configuration states what is not supported.
    """
    pooling = _pooling(kind, facts, where)
    wanted = [_module_name(entry).removeprefix("*.") for entry in kind.layers if "$" not in entry]
    tensors = read_some_tensors(path, wanted, where)
    own: dict[str, Any] = {}
    notation = []
    for entry in kind.layers:
        if entry.startswith("$"):
            notation.append(_activation(entry[1:], kind, facts, where))
        elif entry == "tanh" or entry in ACTIVATION_NAMES:
            notation.append(entry)
        else:
            module = _find(_module_name(entry), [str(key) for key in tensors], facts, where)
            notation.append(f"{module}{entry.removeprefix(_module_name(entry))}")
            own |= {
                f"{module}.{part}": tensors[key]
                for part in ("weight", "bias")
                if (key := f"{module}.{part}") in tensors
            }
    eps = read_eps(facts.get(kind.eps, DEFAULT_EPS[LAYER_NORM]), where)
    layers, _ = build_layers(notation, read_modules(own, True, where), eps, where)
    head = Head(name, layers, {})
    task = _task(kind, facts, head.n_outputs)
    model = facts.get("_name_or_path") or path.parent.name
    # The encoder is in the same folder: embeddings of the model that it was trained from are others.
    encoder = {
        "model": f"{model} ({STATE_NAMES[pooling]})",
        "weights_sha256": weights_digest(path.parent),
        "pooling": pooling,
        "is_normalized": False,
    }
    return Head(name, layers, encoder, task, _labels(facts, head.n_outputs, where))


def _module_name(entry: str) -> str:
    return entry.partition(": ")[0]


def _pooling(kind: Classifier, facts: Mapping[str, Any], where: str) -> str:
    if not kind.pooling.startswith("$"):
        return kind.pooling
    field = kind.pooling[1:]
    stated = facts.get(field, facts.get("clf_pooling", dict(kind.defaults).get(field)))  # the latter in EuroBERT's code
    if str(stated) not in POOLINGS:
        raise HeadError(
            f"{where}: {field} is {reprlib.repr(stated)}; supported are cls (or bos) and mean, which "
            "take one embedding of a document"
        )
    return POOLINGS[str(stated)]


def _activation(field: str, kind: Classifier, facts: Mapping[str, Any], where: str) -> str:
    stated = facts.get(field, dict(kind.defaults).get(field))
    if str(stated) not in ACTIVATION_NAMES:
        raise HeadError(f"{where}: {field} is {reprlib.repr(stated)}; supported are {', '.join(ACTIVATION_NAMES)}")
    return ACTIVATION_NAMES[str(stated)]


def _find(entry: str, keys: list[str], facts: Mapping[str, Any], where: str) -> str:
    """Returns the name of a module in the file."""
    wanted = f"{entry.removeprefix('*')}.weight"
    found = [key for key in keys if (key.endswith(wanted) if entry.startswith("*") else key == wanted)]
    if len(found) != 1:
        kind = facts.get("model_type", "NVIDIA")
        raise HeadError(f"{where}: {wanted.lstrip('.')} is missing, which a {kind} classifier has; download it again")
    return found[0].removesuffix(".weight")


def _task(kind: Classifier, facts: Mapping[str, Any], n_outputs: int) -> str:
    if facts.get("problem_type") == "multi_label_classification":
        return "multilabel"
    if (n_outputs == 1 and kind is not NVIDIA) or facts.get("problem_type") == "regression":
        return "regression"
    return "binary" if n_outputs == 2 else "multiclass"


def _labels(facts: Mapping[str, Any], n_outputs: int, where: str) -> tuple[str, ...]:
    """Returns the names in `id2label`; transformers omits it for two classes without names."""
    names = facts.get("id2label")
    is_multilabel = facts.get("problem_type") == "multi_label_classification"
    if n_outputs == 1 and not is_multilabel:
        return ()
    if not isinstance(names, Mapping):
        return tuple(map(str, range(n_outputs)))
    if len(names) != n_outputs or set(names) != {str(i) for i in range(n_outputs)}:
        raise HeadError(
            f"{where}: id2label names {len(names)} labels, but its last layer gives {n_outputs} values; correct "
            "config.json"
        )
    labels = [names[str(i)] for i in range(n_outputs)]
    unnamed = [i for i, label in enumerate(labels) if not isinstance(label, (str, int)) or not str(label).strip()]
    if unnamed or len(set(map(str, labels))) < n_outputs:
        raise HeadError(
            f"{where}: id2label gives output {unnamed[0]} no name; correct config.json"
            if unnamed
            else f"{where}: id2label gives two outputs one name; correct config.json"
        )
    return tuple(map(str, labels))
