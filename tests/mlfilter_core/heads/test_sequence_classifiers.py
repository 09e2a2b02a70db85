import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PretrainedConfig

from mlfilter_core.encoder.model_files import resolve_model
from mlfilter_core.errors import HeadError
from mlfilter_core.heads.checkpoint_formats import load_head
from mlfilter_core.heads.head import find_mismatched_heads, score
from mlfilter_core.heads.sequence_classifiers import ACTIVATION_NAMES, CLASSIFIERS
from tests.conftest import tiny_tokenizer

# Remote code with the layers of another entry of the table: not in transformers.
REMOTE = {"new": "gte", "xlm-roberta-flash": "xlm-roberta"}
# Kinds whose smallest configuration is large or needs fields of its own; their entry is that of all decoders.
UNTRIED = {"deepseek_v2", "deepseek_v3", "gpt_oss", "jamba", "qwen3_next", "jetmoe"}
TOKENS = {"input_ids": torch.arange(2, 12).reshape(2, 5), "attention_mask": torch.ones(2, 5, dtype=torch.long)}


def tiny_config(model_type: str, n_labels: int, **other: Any) -> PretrainedConfig:
    sizes = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 8, "embedding_size": 8, "max_position_embeddings": 32, "pad_token_id": 0}  # fmt: skip
    if model_type == "distilbert":
        sizes |= {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}
        sizes = {key: sizes[key] for key in sizes if not key.startswith(("hidden_size", "num_"))}
    if model_type in ("gpt2", "gpt_bigcode", "gptj", "mpt", "bloom"):
        sizes |= {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_inner": 8, "d_model": 8, "n_heads": 2, "n_layers": 1}
        sizes |= {"rotary_dim": 4, "n_positions": 32, "max_seq_len": 32}
        names = "n_embd n_layer n_head" if model_type.startswith("gpt") else "d_model n_heads n_layers"
        names = "hidden_size n_layer n_head" if model_type == "bloom" else names
        sizes = {key: sizes[key] for key in (*names.split(), "vocab_size", "pad_token_id", *(
            ("rotary_dim",) if model_type == "gptj" else ()))}  # fmt: skip
    if model_type == "gpt_neo":
        sizes |= {"num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]}
        sizes = {key: sizes[key] for key in sizes if key not in ("num_hidden_layers", "num_attention_heads")}
    if model_type == "opt":
        sizes |= {"ffn_dim": 8, "word_embed_proj_dim": 8}
    if model_type == "eurobert":
        sizes |= {"classifier_pooling": "mean"}
    if CLASSIFIERS[model_type].layers == ("score",) and not model_type.startswith(("gpt", "falcon")):
        sizes |= {"head_dim": 4, "num_key_value_heads": 2, "eos_token_id": 1, "bos_token_id": 1}
    if model_type == "squeezebert":
        sizes |= {"q_groups": 1, "k_groups": 1, "v_groups": 1, "post_attention_groups": 1, "intermediate_groups": 1,
                  "output_groups": 1}  # fmt: skip
    if model_type == "big_bird":
        sizes |= {"attention_type": "original_full"}
    if model_type in ("glm", "glm4"):
        sizes |= {"partial_rotary_factor": 1.0}
    if model_type in ("modernbert", "modernbert-decoder"):
        sizes |= {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2, "norm_eps": 1e-3}
    try:
        return AutoConfig.for_model(model_type, **{**sizes, **other}, num_labels=n_labels)
    except Exception as error:
        raise AssertionError(f"{model_type}: {error}") from error


def save_classifier(folder: Path, config: PretrainedConfig) -> nn.Module:
    """Saves a classifier with random weights, also of biases: zeros would hide a missing one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return model


def pooled(model: nn.Module, pooling: str) -> Any:
    with torch.inference_mode():
        states = model.base_model(**TOKENS).last_hidden_state  # type: ignore[operator, union-attr]
    return {"cls": states[:, 0], "last_token": states[:, -1], "mean": states.mean(dim=1)}[pooling].numpy()


def logits_of(model: nn.Module) -> Any:
    with torch.inference_mode():
        return model(**TOKENS).logits.numpy()


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("model_type", ["llama", "bert"])
def test_a_classifier_in_shards_is_read_from_those_that_hold_its_layers(
    tmp_path: Path, model_type: str, weights: str
) -> None:
    """The shard of the encoder cannot be read as tensors: it is not opened."""
    model = save_classifier(tmp_path, tiny_config(model_type, 2))
    (tmp_path / "model.safetensors").unlink()
    state = model.state_dict()
    wanted = ("score", "classifier", "pooler.dense.weight")
    groups = [[key for key in state if any(key.endswith((word, f"{word}.weight", f"{word}.bias")) for word in wanted)],
              [key for key in state if key.endswith("pooler.dense.bias")]]  # fmt: skip
    groups = [group for group in groups if group]
    stem, _, suffix = weights.partition(".")
    weight_map = dict.fromkeys(state, f"{stem}-00009-of-00009.{suffix}")
    (tmp_path / f"{stem}-00009-of-00009.{suffix}").write_bytes(b"not tensors")
    for i, group in enumerate(groups):
        name = f"{stem}-0000{i}-of-00009.{suffix}"
        own = {key: state[key].contiguous() for key in group}
        save_file(own, tmp_path / name) if suffix == "safetensors" else torch.save(own, tmp_path / name)
        weight_map |= dict.fromkeys(group, name)
    (tmp_path / f"{weights}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    head = load_head("edu", tmp_path)
    np.testing.assert_allclose(score([head], pooled(model, head.encoder["pooling"])), logits_of(model), atol=1e-4)


def test_shards_as_transformers_writes_them_are_read(tmp_path: Path) -> None:
    model = save_classifier(tmp_path / "whole", tiny_config("llama", 1))
    model.save_pretrained(tmp_path / "sharded", max_shard_size="1KB")  # type: ignore[operator]
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    head = load_head("edu", tmp_path / "sharded")
    np.testing.assert_allclose(score([head], pooled(model, "last_token")), logits_of(model), atol=1e-4)


@pytest.mark.parametrize("n_labels", [1, 3])
@pytest.mark.parametrize("model_type", sorted(set(CLASSIFIERS) - UNTRIED - set(REMOTE)))
def test_the_layers_of_a_sequence_classifier_score_its_pooled_states(
    tmp_path: Path, model_type: str, n_labels: int
) -> None:
    """The real classifier from tokens to logits, compared with its head on the states of its encoder."""
    model = save_classifier(tmp_path / "classifier", tiny_config(model_type, n_labels))
    head = load_head("edu", tmp_path / "classifier")
    states, logits = pooled(model, head.encoder["pooling"]), logits_of(model)
    np.testing.assert_allclose(score([head], states), logits, rtol=1e-4, atol=1e-4)
    assert (head.task, head.assumptions) == ("regression" if n_labels == 1 else "multiclass", ())
    assert head.labels == (() if n_labels == 1 else ("LABEL_0", "LABEL_1", "LABEL_2"))


@pytest.mark.parametrize("model_type", sorted(UNTRIED))
def test_the_other_decoders_have_the_same_classifier(model_type: str) -> None:
    from transformers.modeling_layers import GenericForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    config = type(AutoConfig.for_model(model_type))
    assert issubclass(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[config], GenericForSequenceClassification)


@pytest.mark.parametrize(("model_type", "field", "values"), [
    ("modernbert", "classifier_pooling", {"cls": "cls", "mean": "mean"}),
    ("eurobert", "classifier_pooling", {"bos": "cls", "mean": "mean"}),
])  # fmt: skip
def test_the_configuration_states_the_pooling(
    tmp_path: Path, model_type: str, field: str, values: dict[str, str]
) -> None:
    for value, pooling in values.items():
        model = save_classifier(tmp_path / value, tiny_config(model_type, 1, **{field: value}))
        head = load_head("edu", tmp_path / value)
        assert (head.encoder["pooling"], head.encoder["is_normalized"]) == (pooling, False)
        np.testing.assert_allclose(score([head], pooled(model, pooling)), logits_of(model), rtol=1e-4, atol=1e-4)


def test_embeddings_of_another_encoder_than_the_classifiers_own_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "classifier"
    model = save_classifier(folder, tiny_config("bert", 1))
    model.base_model.save_pretrained(tmp_path / "base")  # type: ignore[operator, union-attr]
    for path in (folder, tmp_path / "base"):
        tiny_tokenizer().save_pretrained(path)
    head = load_head("edu", folder)
    own, base = (
        {"weights_sha256": resolve_model(str(path)).weights_sha256, "pooling": "cls", "is_normalized": False}
        for path in (folder, tmp_path / "base")
    )
    assert find_mismatched_heads([head], own, "x.h5", are_allowed=False) == {}
    with pytest.raises(HeadError, match="they differ in weights_sha256"):
        find_mismatched_heads([head], base, "x.h5", are_allowed=False)


def test_scores_of_tokens_that_are_averaged_later_are_refused(tmp_path: Path) -> None:
    save_classifier(tmp_path / "late", tiny_config("eurobert", 1, classifier_pooling="late"))
    with pytest.raises(HeadError, match=r"classifier_pooling is 'late'; supported are cls \(or bos\) and mean"):
        load_head("edu", tmp_path / "late")


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_the_activation_of_a_pooler_is_that_of_the_configuration(tmp_path: Path, activation: str) -> None:
    model = save_classifier(tmp_path / "x", tiny_config("deberta-v2", 2, pooler_hidden_act=activation))
    head = load_head("edu", tmp_path / "x")
    np.testing.assert_allclose(score([head], pooled(model, "cls")), logits_of(model), rtol=1e-4, atol=1e-4)


def test_an_unknown_activation_of_a_pooler_is_refused(tmp_path: Path) -> None:
    save_classifier(tmp_path / "x", tiny_config("deberta-v2", 2, pooler_hidden_act="laplace"))
    with pytest.raises(HeadError, match="pooler_hidden_act is 'laplace'; supported are gelu, relu, "):
        load_head("edu", tmp_path / "x")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("classifier_pooling", ["cls"], r"classifier_pooling is \['cls'\]; supported are cls"),
        ("classifier_activation", {"a": 1}, r"classifier_activation is \{'a': 1\}; supported are gelu"),
        ("norm_eps", "small", "eps is 'small', not a number between 0 and 1"),
    ],
)
def test_a_field_of_another_type_is_refused(tmp_path: Path, field: str, value: Any, message: str) -> None:
    save_classifier(tmp_path / "x", tiny_config("modernbert", 1))
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    (tmp_path / "x" / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(HeadError, match=message):
        load_head("edu", tmp_path / "x")


def test_a_multilabel_classifier_has_a_label_for_each_output(tmp_path: Path) -> None:
    config = tiny_config("bert", 3, problem_type="multi_label_classification", id2label={0: "a", 1: "b", 2: "c"})
    model = save_classifier(tmp_path / "x", config)
    head = load_head("edu", tmp_path / "x")
    assert (head.task, head.labels) == ("multilabel", ("a", "b", "c"))
    np.testing.assert_allclose(score([head], pooled(model, "cls")), logits_of(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["new", "gte"])
def test_the_classifiers_of_gte_s_own_code_are_read(tmp_path: Path, prefix: str) -> None:
    """`NewForSequenceClassification` of Alibaba-NLP/new-impl: `new.pooler.dense`, tanh, `classifier`."""
    module = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    names = {"0": f"{prefix}.pooler.dense", "2": "classifier"}
    state = {f"{names[key[0]]}{key[1:]}": tensor for key, tensor in module.state_dict().items()}
    config = {"architectures": ["NewForSequenceClassification"], "model_type": "new", "id2label": {"0": "LABEL_0"}}
    write(tmp_path, config, {**state, f"{prefix}.embeddings.word_embeddings.weight": torch.zeros(9, 8)})
    states = torch.randn(4, 8)
    np.testing.assert_allclose(
        score([load_head("edu", tmp_path)], states.numpy()), module(states).detach().numpy(), atol=1e-6
    )


def test_the_classifiers_of_nvidia_are_read(tmp_path: Path) -> None:
    """`nvidia/quality-classifier-deberta`: a PyTorchModelHubMixin with `model` and `fc`, and no model type."""
    encoder = AutoModel.from_config(tiny_config("deberta-v2", 2)).eval()
    fc = nn.Linear(8, 3)
    state = {**{f"model.{key}": tensor for key, tensor in encoder.state_dict().items()},
             **{f"fc.{key}": tensor for key, tensor in fc.state_dict().items()}}  # fmt: skip
    labels = {"0": "High", "1": "Medium", "2": "Low"}
    config = {"base_model": "microsoft/deberta-v3-base", "fc_dropout": 0.2, "id2label": labels}
    write(tmp_path, config, state)
    head = load_head("quality", tmp_path)
    assert (head.task, head.labels) == ("multiclass", ("High", "Medium", "Low"))
    assert (head.encoder["pooling"], head.encoder["is_normalized"]) == ("cls", False)
    states = torch.randn(4, 8)
    np.testing.assert_allclose(score([head], states.numpy()), fc(states).detach().numpy(), atol=1e-6)


def write(folder: Path, config: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / "model.safetensors")


def test_the_head_of_a_sequence_classifier_says_how_to_embed(tmp_path: Path) -> None:
    save_classifier(tmp_path / "classifier", tiny_config("bert", 1))
    head = load_head("edu", tmp_path / "classifier")
    message = (
        "head edu was trained on embeddings of classifier (CLS state), but x.h5 was made by org/one; they differ in "
        "pooling ('cls' and 'mean'), is_normalized (False and True). Embed with params.pooling: cls, or use the head"
    )
    with pytest.raises(HeadError, match=re.escape(message)):
        find_mismatched_heads([head], {"model": "org/one", "pooling": "mean", "is_normalized": True}, "x.h5", False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "xlnet"}, "a sequence classifier of model_type 'xlnet'; supported are albert, "),
        ({"model_type": "roberta"}, r"classifier\.dense\.weight is missing, which a roberta classifier has; download"),
        ({"id2label": {"0": "a", "1": ""}}, "id2label gives output 1 no name; correct config"),
        ({"id2label": {"0": "a", "1": None}}, "id2label gives output 1 no name; correct config"),
        ({"id2label": {"0": "a", "1": "a"}}, "id2label gives two outputs one name; correct config"),
        ({"id2label": {"0": "a"}}, "id2label names 1 labels, but its last layer gives 2 values; correct config"),
        ({"id2label": {"1": "a", "2": "b"}}, "id2label names 2 labels, but its last layer gives 2 values"),
    ],
)
def test_another_sequence_classifier_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = tmp_path / "classifier"
    save_classifier(folder, tiny_config("bert", 2))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(HeadError, match=message):
        load_head("edu", folder)
