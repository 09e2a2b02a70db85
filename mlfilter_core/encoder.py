"""Texts to embeddings: model, tokenizer, pooling, device.

Knows nothing about files. Models, their pooling, dense layers, normalisation and prompts are loaded
by sentence-transformers; the loop around them is ours.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from mlfilter_core.batching import plan_batches
from mlfilter_core.devices import pick_device, pick_dtype
from mlfilter_core.encoder_settings import EncoderSettings
from mlfilter_core.errors import EncoderError
from mlfilter_core.linear import pack_linear_layers
from mlfilter_core.model_files import ModelFiles

# Our names, which are those of the job files, and sentence-transformers' names.
POOLING_MODES = {"cls": "cls", "mean": "mean", "max": "max", "last_token": "lasttoken"}
# Budgets of padded tokens that are tried, by doubling: CPUs want small ones, which stay in their caches, GPUs
# large ones. Of those that are about as fast as the fastest, the smallest is taken.
TRIED_BATCH_TOKENS = (512, 1 << 18)
ABOUT_AS_FAST = 0.98
CLEARLY_SLOWER = 0.9
TRIAL_TOKENS = 512  # of each document in a trial; the median web page has about as many
TRIALS_S = 3.0
# On a CPU in bfloat16, attention by plain matrix products encodes 1.2 times as fast as PyTorch's fused kernel
# (MiniLM, two cores of a Zen 5). Its memory grows with the square of the length, hence the limit.
MAX_PLAIN_ATTENTION_TOKENS = 1024
# A tokenizer without a maximum states a huge number instead of none.
NO_MAXIMUM = 1 << 24

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts as token ids, special tokens and prompt included.

    Attributes:
        input_ids: One int32 (n_tokens,) array for each text, cut to `max_length`.
        n_tokens: int32 (n_texts,), their lengths.
        is_cut: bool (n_texts,), whether the text held more tokens than `max_length`.
    """

    input_ids: list[NDArray[np.int32]]
    n_tokens: NDArray[np.int32]
    is_cut: NDArray[np.bool_]

    def select(self, rows: NDArray[np.intp]) -> "TokenizedTexts":
        """Returns some of the texts, in the order of `rows`."""
        return TokenizedTexts([self.input_ids[row] for row in rows], self.n_tokens[rows], self.is_cut[rows])


class Encoder:
    """An encoder on a device. Make one with `load_encoder`.

    Attributes:
        dim: Width of an embedding.
        max_length: Most tokens of a document; None where neither job nor model has a limit.
        is_normalized: Whether the model scales its embeddings to unit length.
        device: Where it computes.
        max_batch_tokens: Most padded tokens in one forward pass.
    """

    def __init__(
        self, model: SentenceTransformer, settings: EncoderSettings, device: torch.device, max_batch_tokens: int | None
    ) -> None:
        self.device = device
        self.settings = settings
        self._transformer: Transformer = model[0]
        self._after = list(model)[1:]
        self._tokenizer = _with_pad_token(self._transformer.tokenizer)
        self.prompt: str = model._resolve_prompt(settings.prompt, None) or ""
        self.dim: int = model.get_embedding_dimension()
        self.max_length = _max_length(model, settings)
        self.is_normalized = any(isinstance(module, Normalize) for module in self._after)
        self.pooling = "+".join(_pooling_modes(self._after))
        self._fixed_features = self._prompt_features()
        self._check_prompt()
        self.max_batch_tokens = max_batch_tokens or self._find_max_batch_tokens()

    def provenance(self) -> dict[str, Any]:
        """What the model made of the settings; recorded in every file of embeddings."""
        return {
            "dim": self.dim,
            "max_length": self.max_length,
            "pooling": self.pooling,
            "is_normalized": self.is_normalized,
            "prompt": self.prompt,
            "device": self.device.type,
            "compute_dtype": str(self._transformer.model.dtype).removeprefix("torch."),
            "attention": self._transformer.model.config._attn_implementation,
            "max_batch_tokens": self.max_batch_tokens,
        }

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Returns the token ids that the model is given for each text, prompt included."""
        if not texts:
            return TokenizedTexts([], np.zeros(0, np.int32), np.zeros(0, np.bool_))
        encoded = self._tokenizer(
            [self.prompt + text for text in texts],
            truncation=self.max_length is not None,
            max_length=self.max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        input_ids = [np.asarray(ids, np.int32) for ids in encoded["input_ids"]]
        n_tokens = np.fromiter(map(len, input_ids), np.int32, len(input_ids))
        is_cut = np.fromiter(
            (n == self.max_length and _has_overflow(encoded, i) for i, n in enumerate(n_tokens)),
            np.bool_,
            len(input_ids),
        )
        return TokenizedTexts(input_ids, n_tokens, is_cut)

    def encode(self, tokenized: TokenizedTexts, max_batch_documents: int) -> NDArray[np.float32]:
        """Runs the model.

        Args:
            tokenized: From `tokenize`.
            max_batch_documents: Most documents in one forward pass.

        Returns:
            float32 (n_texts, dim), row i is text i, whatever batch it was in.
        """
        embeddings = np.empty((len(tokenized.input_ids), self.dim), np.float32)
        n_tokens = tokenized.n_tokens
        if self.settings.pad_to_max_length and self.max_length is not None:
            n_tokens = np.full_like(n_tokens, self.max_length)
        for rows in plan_batches(n_tokens, max_batch_documents, self.max_batch_tokens):
            batch = [tokenized.input_ids[row] for row in rows]
            embeddings[rows] = self._forward(batch)
        return embeddings

    @torch.inference_mode()
    def _forward(self, batch: list[NDArray[np.int32]]) -> NDArray[np.float32]:
        features = {name: tensor.to(self.device, non_blocking=True) for name, tensor in self._pad(batch).items()}
        features = self._transformer({**features, **self._fixed_features})
        features["token_embeddings"] = features["token_embeddings"].float()
        for module in self._after:
            features = module(features)
        return features["sentence_embedding"].cpu().numpy()  # type: ignore[no-any-return]

    def _pad(self, batch: list[NDArray[np.int32]]) -> dict[str, torch.Tensor]:
        width = max(map(len, batch))
        if self.settings.pad_to_max_length and self.max_length is not None:
            width = self.max_length
        input_ids = np.full((len(batch), width), self._tokenizer.pad_token_id, np.int64)
        attention_mask = np.zeros((len(batch), width), np.int64)
        # On the right even where the tokenizer would pad on the left: absolute positions then count from the
        # text's first token, whatever the batch. The pooling modules go by the mask.
        for row, ids in enumerate(batch):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        features = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask)}
        if "token_type_ids" in self._tokenizer.model_input_names:
            features["token_type_ids"] = torch.zeros_like(features["input_ids"])
        return features

    def _prompt_features(self) -> dict[str, Any]:
        """Runs sentence-transformers' own preprocessing once, for what it adds to the token ids."""
        features = self._transformer.preprocess(["a"], prompt=self.prompt or None)
        if features.get("token_type_ids", torch.zeros(1)).any():
            raise EncoderError("this tokenizer gives token types other than 0, which is not supported")
        return {"prompt_length": features["prompt_length"]} if "prompt_length" in features else {}

    def _find_max_batch_tokens(self) -> int:
        """Times forward passes of growing size, for a few seconds at most."""
        length = self.max_length or TRIAL_TOKENS
        if not self.settings.pad_to_max_length:
            length = min(length, TRIAL_TOKENS)
        document = np.ones(length, np.int32)  # the speed does not depend on what the tokens are
        rates: dict[int, float] = {}
        budget, largest = TRIED_BATCH_TOKENS
        deadline = time.perf_counter() + TRIALS_S
        while budget <= largest and time.perf_counter() < deadline:
            batch = [document] * max(budget // length, 1)
            try:
                seconds = min(_seconds(lambda: self._forward(batch)) for _ in range(3))  # noqa: B023
            except torch.OutOfMemoryError:
                break
            rates[budget] = len(batch) * length / seconds
            if rates[budget] < CLEARLY_SLOWER * max(rates.values()):
                break
            budget *= 2
        fast_enough = ABOUT_AS_FAST * max(rates.values())
        chosen = min(budget for budget, rate in rates.items() if rate >= fast_enough)
        tried = ", ".join(f"{budget}: {rate:.0f}" for budget, rate in rates.items())
        _log.info("batches of at most %d tokens, the smallest of the fastest (tokens/s by size: %s)", chosen, tried)
        return chosen

    def _check_prompt(self) -> None:
        n_tokens = len(self._tokenizer(self.prompt)["input_ids"])
        if self.prompt and self.max_length is not None and n_tokens >= self.max_length:
            raise EncoderError(
                f"the prompt alone has {n_tokens} tokens, and max_length is {self.max_length}: every document would "
                "get the same embedding; raise params.max_length, or shorten params.prompt"
            )


def load_encoder(
    files: ModelFiles, settings: EncoderSettings, device: str = "auto", max_batch_tokens: int | None = None
) -> Encoder:
    """Loads an encoder onto a device.

    Args:
        files: From `resolve_model`.
        settings: What changes its embeddings.
        device: `auto` (CUDA, then MPS, then CPU), or a torch device such as `cuda:1`.
        max_batch_tokens: Most padded tokens in one forward pass; None takes a few seconds to find the
            size that is fastest here.

    Raises:
        EncoderError: The files do not make an encoder of texts, the device is absent, or `max_length`
            exceeds what the model has positions for.
    """
    chosen = pick_device(device)
    try:
        model = SentenceTransformer(
            str(files.folder),
            device=str(chosen),
            trust_remote_code=settings.trust_remote_code,
            model_kwargs={"dtype": torch.float32},
        )
    except Exception as error:  # transformers raises ValueError, OSError, KeyError, ImportError, ...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EncoderError(f"embedding_model: {files.folder} does not load: {reason}") from error
    first = model[0]
    if not isinstance(first, Transformer) or first.module_output_name != "token_embeddings":
        raise EncoderError(
            f"embedding_model: {files.folder} starts with {type(first).__name__}; only Hugging Face "
            "transformers that give one embedding for each token are supported"
        )
    if "message" in first.modalities:
        raise EncoderError(f"embedding_model: {files.folder} reads chat messages; only plain text is supported")
    if settings.pooling is not None:
        _set_pooling(model, settings.pooling)
    dtype = pick_dtype(settings.model_dtype, chosen)
    first.to(dtype)
    if chosen.type == "cpu" and dtype == torch.bfloat16:
        _use_plain_attention(model, settings)
    pack_linear_layers(model)
    model.eval()
    encoder = Encoder(model, settings, chosen, max_batch_tokens)
    _log.info(
        "encoder %s on %s: %d dimensions, %s pooling, at most %s tokens, %s, %s attention",
        *(files.model, chosen, encoder.dim, encoder.pooling, encoder.max_length),
        *(str(dtype).removeprefix("torch."), encoder.provenance()["attention"]),
    )
    return encoder


def _use_plain_attention(model: SentenceTransformer, settings: EncoderSettings) -> None:
    max_length = _max_length(model, settings)
    transformer = model[0].model
    has_choice = getattr(transformer.config, "_attn_implementation", None) == "sdpa"
    if has_choice and max_length is not None and max_length <= MAX_PLAIN_ATTENTION_TOKENS:
        transformer.set_attn_implementation("eager")


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _with_pad_token(tokenizer: Any) -> Any:
    """Gives a tokenizer without a pad token another of its tokens for that: the attention mask hides it."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.cls_token
    if tokenizer.pad_token_id is None:
        raise EncoderError("the tokenizer has no pad token; set one, and save it with tokenizer.save_pretrained(...)")
    return tokenizer


def _set_pooling(model: SentenceTransformer, pooling: str) -> None:
    width = model[0].get_embedding_dimension()
    for name, module in model.named_children():
        if isinstance(module, Pooling):
            setattr(model, name, Pooling(width, POOLING_MODES[pooling], include_prompt=module.include_prompt))


def _pooling_modes(modules: list[torch.nn.Module]) -> list[str]:
    names = {ours: name for name, ours in POOLING_MODES.items()}
    modes: list[str] = []
    for module in modules:
        if isinstance(module, Pooling):
            own = module.pooling_mode
            modes += [names.get(mode, mode) for mode in ([own] if isinstance(own, str) else own)]
    return modes


def _max_length(model: SentenceTransformer, settings: EncoderSettings) -> int | None:
    stated = model.max_seq_length
    stated = None if stated is None or stated > NO_MAXIMUM else int(stated)
    wanted = settings.max_length or stated
    n_positions = _n_positions(model[0].model)
    if wanted is not None and n_positions is not None and wanted > n_positions:
        raise EncoderError(
            f"params.max_length is {wanted}, but the model has positions for {n_positions} tokens; "
            f"set max_length to {n_positions} or less"
        )
    return wanted or n_positions


def _n_positions(transformer: torch.nn.Module) -> int | None:
    """Returns the length of the model's table of absolute positions; None where it has no table."""
    for name, module in transformer.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa and its kin count positions from padding_idx + 1.
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - skipped
    return None


def _has_overflow(encoded: Any, i: int) -> bool:
    return bool(encoded.encodings[i].overflowing) if encoded.encodings else True
