"""Embeddings of each family of encoders, compared with SentenceTransformer.encode one text at a time.

The models have the families' true architectures, few small layers, and random weights under which positions and
attention matter. Texts have 1 to 8,192 tokens, special tokens written out among them. In float32 the largest difference
counts; in bfloat16 the lowest cosine with the float32 embeddings, ours and that of sentence-transformers.

    python benchmarks/fidelity.py --json benchmarks/results/fidelity.json
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from measure import publish
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import resolve_model
from mlfilter_core.encoder.settings import EncoderSettings

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
SHORT_TEXTS = (
    *("", "x", "one", "two words", "a <pad> b", "<pad>", "<s> </s> <mask> <unk> end", "</s>"),
    *("日本語の文章です。", "word " * 9, "Set tokenizer.pad_token = '<pad>' first. " * 3),
)
DIM, HEADS, LAYERS = 64, 4, 4
GAIN = 1.6  # of each matrix: at transformers' own 0.02, attention is uniform and nothing depends on positions


@dataclass(frozen=True)
class Family:
    """A family of encoders.

    Attributes:
        architecture: Name of transformers' classes: `<architecture>Model` and `<architecture>Config`.
        pooling: Pooling of the family's encoders.
        positions: Most tokens that its encoders take.
        settings: Settings of the configuration beside the sizes.
        model: Suffix of the model's class.
    """

    architecture: str
    pooling: str = "mean"
    positions: int = 512
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = "Model"


DECODER = {"num_key_value_heads": 2, "head_dim": 16}
FAMILIES = {
    "bert": Family("Bert"),
    "roberta": Family("Roberta"),
    "xlm_roberta": Family("XLMRoberta"),
    "camembert": Family("Camembert"),
    "mpnet": Family("MPNet"),
    "distilbert": Family("DistilBert", settings={"dim": DIM, "hidden_dim": 2 * DIM, "n_heads": HEADS, "n_layers": 2}),
    "electra": Family("Electra", settings={"embedding_size": DIM}),
    "albert": Family("Albert", settings={"embedding_size": 32}),
    "deberta_v2": Family(
        "DebertaV2",
        settings={
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 64,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
        },
    ),
    "mobilebert": Family(
        "MobileBert", settings={"embedding_size": 32, "intra_bottleneck_size": 32, "intermediate_size": DIM}
    ),
    "t5": Family(
        "T5", settings={"d_model": DIM, "d_kv": 16, "d_ff": 2 * DIM, "num_heads": HEADS}, model="EncoderModel"
    ),
    "modernbert": Family(
        "ModernBert",
        "cls",
        8192,
        {"local_attention": 128, "global_attn_every_n_layers": 3, "cls_token_id": 0, "sep_token_id": 2},
    ),
    "nomic_bert": Family("NomicBert", "mean", 8192),
    "eurobert": Family("EuroBert", "mean", 8192, DECODER),
    "qwen2": Family("Qwen2", "lasttoken", 8192, {"num_key_value_heads": 2}),
    "qwen3": Family("Qwen3", "lasttoken", 8192, DECODER),
    "llama": Family("Llama", "lasttoken", 8192, DECODER),
    "mistral": Family("Mistral", "lasttoken", 8192, {**DECODER, "sliding_window": 600}),
    "gemma": Family("Gemma", "mean", 8192, DECODER),
    "gemma2": Family("Gemma2", "mean", 4096, {**DECODER, "sliding_window": 600, "query_pre_attn_scalar": 16}),
    "gemma3_bidirectional": Family(
        "Gemma3Text",
        "mean",
        8192,
        {**DECODER, "sliding_window": 512, "use_bidirectional_attention": True, "query_pre_attn_scalar": 16},
    ),
}


def main() -> None:
    """Runs the comparison, of all families or of those that are named."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, help="write the figures to this file as one flat object")
    options.add_argument("--families", nargs="*", default=list(FAMILIES), choices=FAMILIES, help="default: all")
    options.add_argument("--lengths", nargs="*", type=int, default=[512, 4096, 8192], help="tokens of the long texts")
    arguments = options.parse_args()
    torch.set_num_threads(2)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.families:
            for figure, value in compare(Path(folder) / name, FAMILIES[name], arguments.lengths):
                figures[f"{name}_{figure}"] = value
    publish(figures, {"texts": f"{len(SHORT_TEXTS)} short ones, and {arguments.lengths} tokens"}, arguments.json)


def compare(folder: Path, family: Family, lengths: list[int]) -> Iterator[tuple[str, float]]:
    """Yields figures of one family by name; makes the model in `folder`."""
    make_model(folder, family)
    lengths = [length for length in lengths if length <= family.positions]
    texts = [*SHORT_TEXTS, *(prose(length) for length in lengths)]
    expected = theirs(folder, texts, torch.float32)
    encoder = load_encoder(resolve_model(str(folder)), EncoderSettings(), "cpu", 2048)
    found = encoder.encode(encoder.tokenize(texts)).embeddings()
    yield "float32_difference", float(np.abs(found - expected).max())
    yield "is_unpadded", float(encoder.forward_pass.is_unpadded)
    halves = {"bfloat16": torch.bfloat16}
    for name, dtype in halves.items():
        encoder = load_encoder(resolve_model(str(folder)), EncoderSettings(model_dtype=name), "cpu", 2048)
        ours = cosines(encoder.encode(encoder.tokenize(texts)).embeddings(), expected)
        peer = cosines(theirs(folder, texts, dtype), expected)
        for length, one, other in zip(lengths, ours[len(SHORT_TEXTS) :], peer[len(SHORT_TEXTS) :], strict=True):
            yield f"{name}_cosine_{length}", one
            yield f"{name}_cosine_{length}_sentence_transformers", other
        yield f"{name}_cosine_short", min(ours[: len(SHORT_TEXTS)])
        yield f"{name}_cosine_short_sentence_transformers", min(peer[: len(SHORT_TEXTS)])


def make_model(folder: Path, family: Family, model: str | None = None) -> None:
    """Saves a model with random weights, in `plain` as transformers does.

    Args:
        folder: Where to.
        family: Its family.
        model: Suffix of its class. Without it, the family's encoder is also saved as sentence-transformers does.
    """
    sizes = {
        "hidden_size": DIM,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "intermediate_size": 2 * DIM,
    }
    tokens = {"vocab_size": len(SPECIAL) + 256, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    config_class = getattr(transformers, f"{family.architecture}Config")
    own_positions = 2 if family.architecture in ("Roberta", "XLMRoberta", "Camembert", "MPNet") else 0
    config = config_class(
        **{**sizes, **tokens, "max_position_embeddings": family.positions + own_positions, **family.settings}
    )
    torch.manual_seed(0)
    made = getattr(transformers, f"{family.architecture}{model or family.model}")(config).eval()
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight.normal_(0, 0.5)
            elif isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, GAIN / module.in_features**0.5)
    plain = folder / "plain"
    made.save_pretrained(plain)
    byte_tokenizer(family.positions).save_pretrained(plain)
    if model is not None:
        return
    modules = [Transformer(str(plain)), Pooling(DIM, family.pooling), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)


def byte_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with a token for each byte, `<s>` before a text and `</s>` after it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*SPECIAL, *alphabet])}, []))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        **names,
        cls_token="<s>",
        sep_token="</s>",
    )


def prose(n_tokens: int) -> str:
    """Returns a text of so many bytes, special tokens included, whose words are not random noise."""
    words = ("the", "leaf", "of", "a", "plant", "takes", "light", "and", "gives", "air", "while", "water", "rises")
    rng = np.random.default_rng(n_tokens)
    return " ".join(rng.choice(words, n_tokens))[: n_tokens - 2]


def theirs(folder: Path, texts: list[str], dtype: torch.dtype) -> NDArray[np.float32]:
    """Returns the embeddings of sentence-transformers, of one text at a time."""
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})
    return model.encode(texts, batch_size=1, show_progress_bar=False, convert_to_tensor=True).float().cpu().numpy()


def cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> list[float]:
    """Returns the cosine of each pair of rows, computed in float64."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    products = (one * other).sum(axis=1)
    return (products / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).tolist()


if __name__ == "__main__":
    main()
