"""Encoders with random weights, in the sizes of well-known ones, and texts for them.

Throughput does not depend on the weights. Nothing is downloaded: the tokenizer is made here too, and the documents are
random words of its vocabulary, one token each.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    ModernBertConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    XLMRobertaConfig,
)

N_WORDS = 30_000
MEAN_TOKENS = 690  # mean of web documents in the JQL paper, https://arxiv.org/abs/2505.22232
TINY_MEAN_TOKENS = 40
SPREAD = 0.9  # standard deviation of the logarithm of the length
# Sizes of a model that shows no more than that a script runs.
TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
TINY_DECODER = {"num_key_value_heads": 1, "head_dim": 16}


@dataclass(frozen=True)
class RandomEncoder:
    """An encoder.

    Attributes:
        config: Class of its configuration in transformers.
        settings: Settings of the configuration.
        pooling: Pooling as sentence-transformers names it.
    """

    config: type[PretrainedConfig]
    settings: dict[str, Any]
    pooling: str = "mean"


ENCODERS = {
    "xlm_roberta_base": RandomEncoder(
        XLMRobertaConfig, {"vocab_size": 250_002, "max_position_embeddings": 514, "type_vocab_size": 1}
    ),
    "modernbert_base": RandomEncoder(ModernBertConfig, {}),
    "qwen3_600m": RandomEncoder(  # Qwen3-Embedding-0.6B: causal, key and value heads shared by two query heads
        Qwen3Config,
        {
            **{"vocab_size": 151_669, "pad_token_id": 151_643, "max_position_embeddings": 32_768},
            **{"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28},
            **{"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
        },
        "lasttoken",
    ),
    "minilm": RandomEncoder(
        BertConfig,
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    ),
}


def save_encoder(encoder: RandomEncoder, folder: Path, is_tiny: bool) -> PretrainedConfig:
    """Writes an encoder as sentence-transformers does, in bfloat16, where it is missing; returns its configuration."""
    tiny = {**TINY, **(TINY_DECODER if encoder.config is Qwen3Config else {})} if is_tiny else {}
    config = encoder.config(**{**encoder.settings, **tiny})
    if folder.exists():
        return config
    torch.manual_seed(0)
    plain, made = folder.with_name(f"{folder.name}_plain"), folder.with_name(f"{folder.name}_made")
    AutoModel.from_config(config, dtype=torch.bfloat16).save_pretrained(plain)
    has_types = encoder.config is BertConfig
    names = ["input_ids", *(["token_type_ids"] if has_types else []), "attention_mask"]
    new_tokenizer(config.pad_token_id, names).save_pretrained(plain)
    modules = [Transformer(str(plain)), Pooling(config.hidden_size, encoder.pooling), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(made), create_model_card=False)
    shutil.rmtree(plain)
    made.rename(folder)
    return config


def new_tokenizer(pad_token_id: int, names: list[str]) -> PreTrainedTokenizerFast:
    """Returns a WordPiece tokenizer of whole words, `w<number>`, with the pad token where the model has it."""
    tokens = [f"w{i}" for i in range(N_WORDS)]
    vocabulary = {token: i for i, token in enumerate(["[UNK]", "[CLS]", "[SEP]", *tokens])}
    if pad_token_id < len(vocabulary):  # replaces a word, or a special token, which moves to the end
        displaced = next(token for token, i in vocabulary.items() if i == pad_token_id)
        vocabulary[displaced] = len(vocabulary)
    vocabulary["[PAD]"] = pad_token_id
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    roles = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=names, **roles)


def random_texts(n_documents: int, mean_tokens: int) -> list[str]:
    """Returns texts whose lengths are spread as those of web pages: log-normal, with this mean."""
    chance = np.random.default_rng(0)
    lengths = chance.lognormal(np.log(mean_tokens) - SPREAD**2 / 2, SPREAD, n_documents).astype(int)
    words = [f"w{i}" for i in range(N_WORDS)]
    return [" ".join([words[i] for i in chance.integers(N_WORDS, size=max(1, n - 2)).tolist()]) for n in lengths]


def forward_flops(config: PretrainedConfig, n_tokens: NDArray[np.int32]) -> float:
    """Returns the floating-point operations of the matrix products for the tokens, without padding.

    For each layer and token: 2 for each weight, and 4 for each column of the queries and token that is attended to.
    """
    hidden, n_layers, lengths = config.hidden_size, config.num_hidden_layers, n_tokens.astype(np.float64)
    width = config.num_attention_heads * (getattr(config, "head_dim", None) or hidden // config.num_attention_heads)
    n_shared = config.num_attention_heads // (
        getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    )
    is_gated = isinstance(config, (ModernBertConfig, Qwen3Config))  # the gate is a third matrix
    weights = 2 * hidden * width * (1 + 1 / n_shared) + (3 if is_gated else 2) * hidden * config.intermediate_size
    seen = n_layers * lengths
    if isinstance(config, ModernBertConfig):  # most layers see `local_attention` tokens
        n_global = sum(kind == "full_attention" for kind in config.layer_types)
        seen = n_global * lengths + (n_layers - n_global) * np.minimum(lengths, config.local_attention)
    elif isinstance(config, Qwen3Config):  # only the tokens before
        seen = seen / 2
    return float((2 * weights * n_layers * lengths + 4 * width * seen * lengths).sum())
