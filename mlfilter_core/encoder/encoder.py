"""Texts to embeddings: model, tokenizer, pooling, device.

Knows nothing about files. Models, their pooling, dense layers, normalisation and prompts are loaded
by sentence-transformers; the loop around them is ours.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from mlfilter_core.compute.devices import (
    give_back_freed_memory,
    is_out_of_memory,
    keep_freed_memory,
    pick_device,
    pick_dtype,
)
from mlfilter_core.compute.linear import pack_linear_layers
from mlfilter_core.encoder.attention import UNPADDED, can_attend_unpadded
from mlfilter_core.encoder.batching import find_max_batch_tokens, plan_batches
from mlfilter_core.encoder.long_texts import TruncatingTokenizer
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.errors import EncoderError

# Our names, which are those of the job files, and sentence-transformers' names.
POOLING_MODES = {"cls": "cls", "mean": "mean", "max": "max", "last_token": "lasttoken"}
TRIAL_TOKENS = 512  # of each document in a trial; the median web page has about as many
# Relative distance of two embeddings of one text that differ by rounding only.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}
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


class EncodedTexts:
    """Embeddings that a GPU may still be computing.

    Attributes:
        fits: bool (n_texts,), false where a text alone takes more memory than there is; its embedding is 0.
        n_out_of_memory: How often a batch did not fit and was divided.
        max_batch_tokens: Most tokens in one forward pass, for the texts after these.
    """

    def __init__(
        self, embeddings: torch.Tensor, fits: NDArray[np.bool_], n_out_of_memory: int, max_batch_tokens: int
    ) -> None:
        """Starts to copy float32 (n_texts, dim) from its device."""
        self.fits = fits
        self.n_out_of_memory = n_out_of_memory
        self.max_batch_tokens = max_batch_tokens
        self._copied: torch.cuda.Event | None = None
        if embeddings.device.type == "cuda":
            on_host = torch.empty(embeddings.shape, pin_memory=True).copy_(embeddings, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(embeddings.device))
            self._embeddings = on_host
        else:
            self._embeddings = embeddings.cpu()

    def embeddings(self) -> NDArray[np.float32]:
        """Returns float32 (n_texts, dim), row i is text i; waits for it where it must."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._embeddings.numpy()


class Encoder:
    """An encoder on a device. Make one with `load_encoder`.

    Attributes:
        dim: Width of an embedding.
        max_length: Most tokens of a document; None where neither job nor model has a limit.
        is_normalized: Whether the model scales its embeddings to unit length.
        device: Where it computes.
        is_unpadded: Whether the texts of a batch lie one after another, else padded to the longest.
        is_compiled: Whether torch.compile has made the code of its forward pass.
        max_batch_tokens: Most tokens in one forward pass, padding included; less once memory ran out.
        why_max_batch_tokens: How that number was found.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        settings: EncoderSettings,
        device: torch.device,
        max_batch_tokens: int | None,
        torch_compile: bool,
    ) -> None:
        self.device = device
        self.settings = settings
        self._transformer: Transformer = model[0]
        self._after = list(model)[1:]
        self._tokenizer = _with_pad_token(self._transformer.tokenizer)
        self.prompt: str = model._resolve_prompt(settings.prompt, None) or ""
        self.dim: int = model.get_embedding_dimension()
        self.max_length = _max_length(model, settings)
        self._truncating = TruncatingTokenizer(self._tokenizer, self.max_length)
        self.is_normalized = any(isinstance(module, Normalize) for module in self._after)
        self.pooling = "+".join(_pooling_modes(self._after))
        self._first_position = _first_position(self._transformer.model)
        self._fixed_features = self._prompt_features()
        self._check_prompt()
        self.is_unpadded = not settings.pad_to_max_length and self._take_unpadded_attention()
        self.is_compiled = torch_compile and self._compile()
        if not self.is_compiled:  # compiled code cannot look into packed weights
            pack_linear_layers(model)
        self.max_batch_tokens, self.why_max_batch_tokens = max_batch_tokens or 0, "as asked for"
        if max_batch_tokens is None:
            self.max_batch_tokens, self.why_max_batch_tokens = self._find_max_batch_tokens()

    def __str__(self) -> str:
        """Where and how it computes."""
        made = self.provenance()
        return (
            f"{made['compute_dtype']} on {self.device}, {made['attention']} attention, batches of at most "
            f"{self.max_batch_tokens} tokens ({self.why_max_batch_tokens})"
            + (", compiled" if self.is_compiled else "")
            + (", with code that the model ships (trust_remote_code)" if self.settings.trust_remote_code else "")
        )

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
            "attention": "unpadded" if self.is_unpadded else self._transformer.model.config._attn_implementation,
            "is_compiled": self.is_compiled,
            "max_batch_tokens": self.max_batch_tokens,
            "why_max_batch_tokens": self.why_max_batch_tokens,
        }

    def gpu_memory_bytes(self) -> int:
        """Returns what PyTorch holds of the GPU's memory; 0 without one."""
        return torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else 0

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Returns the token ids that the model is given for each text, prompt included."""
        input_ids, is_cut = self._truncating.tokenize([self.prompt + text for text in texts])
        n_tokens = np.fromiter(map(len, input_ids), np.int32, len(input_ids))
        return TokenizedTexts(input_ids, n_tokens, is_cut)

    @torch.inference_mode()
    def encode(
        self,
        tokenized: TokenizedTexts,
        max_batch_documents: int | None = None,
        max_batch_tokens: int | None = None,
        told: Callable[[int, int], None] | None = None,
    ) -> EncodedTexts:
        """Runs the model.

        A batch that does not fit in memory is divided, and so are those after it.

        Args:
            tokenized: From `tokenize`.
            max_batch_documents: Most documents in one forward pass; None sets no limit.
            max_batch_tokens: Most tokens in one; None takes the encoder's own number. The last bits of an
                embedding depend on it.
            told: Called with the number of documents and of tokens of each batch.
        """
        embeddings = torch.zeros((len(tokenized.input_ids), self.dim), device=self.device)
        fits = np.ones(len(embeddings), np.bool_)
        n_out_of_memory = 0
        max_batch_tokens = max_batch_tokens or self.max_batch_tokens
        n_tokens = tokenized.n_tokens
        if self.settings.pad_to_max_length and self.max_length is not None:
            n_tokens = np.full_like(n_tokens, self.max_length)
        batches = plan_batches(n_tokens, max_batch_documents, max_batch_tokens)
        while batches:
            rows = batches[0]
            encoded = self._forward_if_it_fits([tokenized.input_ids[row] for row in rows])
            if encoded is not None:
                embeddings[self._to_device(torch.from_numpy(rows))] = encoded
                batches = batches[1:]
                if told is not None:
                    told(len(rows), int(tokenized.n_tokens[rows].sum()))
            elif len(rows) == 1:
                fits[rows] = False
                batches = batches[1:]
            else:
                n_out_of_memory += 1
                max_batch_tokens = self.max_batch_tokens = len(rows) // 2 * int(n_tokens[rows].max())
                self.why_max_batch_tokens = "halved, since memory ran out"
                _log.warning("out of memory: batches of at most %d tokens from here on", max_batch_tokens)
                remaining = np.concatenate(batches)
                planned = plan_batches(n_tokens[remaining], max_batch_documents, max_batch_tokens)
                batches = [remaining[batch] for batch in planned]
        return EncodedTexts(embeddings, fits, n_out_of_memory, max_batch_tokens)

    def _forward_if_it_fits(self, batch: list[NDArray[np.int32]]) -> torch.Tensor | None:
        try:
            return self._forward(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        give_back_freed_memory(self.device)
        return None

    def _forward(self, batch: list[NDArray[np.int32]]) -> torch.Tensor:
        """Returns float32 (n_texts, dim) on the device."""
        features = self._in_one_row(batch) if self.is_unpadded else self._padded(batch)
        on_device = {
            name: self._to_device(value) if isinstance(value, torch.Tensor) else value
            for name, value in features.items()
        }
        features = self._transformer({**on_device, **self._fixed_features})
        features["token_embeddings"] = features["token_embeddings"].float()
        for module in self._after:
            features = module(features)
        return features["sentence_embedding"]  # type: ignore[no-any-return]

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":  # from pinned memory, the copy waits for nothing and nothing for it
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _in_one_row(self, batch: list[NDArray[np.int32]]) -> dict[str, Any]:
        """Returns (1, n_tokens) features, and where each text starts; sentence-transformers' pooling knows them."""
        lengths = np.fromiter(map(len, batch), np.int64, len(batch))
        ends = np.cumsum(lengths)
        starts = ends - lengths
        numbers = np.repeat(np.arange(len(batch)), lengths)
        input_ids = torch.from_numpy(np.concatenate(batch).astype(np.int64)[None])
        positions = np.arange(ends[-1]) - starts[numbers] + self._first_position
        bounds = torch.from_numpy(np.append(starts, ends[-1]).astype(np.int32))
        return {
            **self._token_types(input_ids),
            "position_ids": torch.from_numpy(positions[None]),
            "seq_idx": torch.from_numpy(numbers.astype(np.int32)[None]),
            **{"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds},
            **{"max_length_q": int(lengths.max()), "max_length_k": int(lengths.max())},
        }

    def _padded(self, batch: list[NDArray[np.int32]]) -> dict[str, Any]:
        """Returns (n_texts, width) features."""
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
        return {**self._token_types(torch.from_numpy(input_ids)), "attention_mask": torch.from_numpy(attention_mask)}

    def _token_types(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        if "token_type_ids" in self._tokenizer.model_input_names:
            return {"input_ids": input_ids, "token_type_ids": torch.zeros_like(input_ids)}
        return {"input_ids": input_ids}

    @torch.inference_mode()
    def _take_unpadded_attention(self) -> bool:
        """Sets the model to unpadded attention where that gives the same embeddings, and says whether it did."""
        model = self._transformer.model
        if not (can_attend_unpadded(self.device, model.dtype) and model.is_backend_compatible()):
            return False
        own_attention, own_parameters = model.config._attn_implementation, self._transformer.model_forward_params

        def take() -> None:
            model.set_attn_implementation(UNPADDED)
            if own_parameters is not None:
                names = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
                self._transformer.model_forward_params = own_parameters | set(names)
            self.is_unpadded = True

        self.is_unpadded = False
        reason = self._reason_against(take)
        if reason is None:
            return True
        _log.warning("this model cannot take texts without padding (%s); padded batches are slower", reason)
        model.set_attn_implementation(own_attention)
        self._transformer.model_forward_params = own_parameters
        self.is_unpadded = False
        return False

    @torch.inference_mode()
    def _compile(self) -> bool:
        """Compiles the forward pass where that gives the same embeddings, and says whether it did."""
        model = self._transformer.model

        def compile_it() -> None:
            model.forward = torch.compile(model.forward, dynamic=True)

        started = time.monotonic()
        torch._dynamo.config.suppress_errors = False
        reason = self._reason_against(compile_it)
        # From here on, a graph that cannot be compiled is computed as it is, with a warning.
        torch._dynamo.config.suppress_errors = True
        if reason is None:
            _log.info("torch.compile took %.0f s", time.monotonic() - started)
            return True
        _log.warning("torch_compile: this model is not compiled (%s), and computes as without", reason)
        vars(model).pop("forward", None)
        return False

    def _reason_against(self, change: Callable[[], None]) -> str | None:
        """Changes how the model computes. Returns why that cannot stay; None where its embeddings are the same."""
        model = self._transformer.model
        longest = min(self.max_length or TRIAL_TOKENS, TRIAL_TOKENS)
        lengths = [length for length in (longest // 2, longest * 2 // 3, longest) if length > 0]
        # Not the pad token, from which some models count positions.
        vocabulary = np.arange(model.config.get_text_config().vocab_size)
        tokens = vocabulary[vocabulary != self._tokenizer.pad_token_id]
        texts = [np.resize(tokens[number:], length).astype(np.int32) for number, length in enumerate(lengths)]
        batches = [texts, texts[-1:]]  # what is compiled for one text may differ from what is for several
        expected = torch.cat([self._forward(batch) for batch in batches])
        try:
            change()
            distances = (torch.cat([self._forward(batch) for batch in batches]) - expected).norm(dim=1)
            distances /= expected.norm(dim=1)
        except Exception as error:  # whatever a model's own code or a compiler raises
            return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        are_same = bool((distances <= ROUNDING[model.dtype]).all())
        return None if are_same else f"embeddings differ by {distances.max():.0%}"

    def _prompt_features(self) -> dict[str, Any]:
        """Runs sentence-transformers' own preprocessing once, for what it adds to the token ids."""
        features = self._transformer.preprocess(["a"], prompt=self.prompt or None)
        if features.get("token_type_ids", torch.zeros(1)).any():
            raise EncoderError("this tokenizer gives token types other than 0, which is not supported")
        return {"prompt_length": features["prompt_length"]} if "prompt_length" in features else {}

    @torch.inference_mode()
    def _find_max_batch_tokens(self) -> tuple[int, str]:
        length = self.max_length or TRIAL_TOKENS
        if not self.settings.pad_to_max_length:
            length = min(length, TRIAL_TOKENS)
        document = np.ones(length, np.int32)  # the speed does not depend on what the tokens are

        def encode(n_tokens: int) -> int | None:
            batch = [document] * max(n_tokens // length, 1)
            encoded = self._forward_if_it_fits(batch)
            return None if encoded is None else len(encoded.cpu()) * length

        return find_max_batch_tokens(encode)

    def _check_prompt(self) -> None:
        n_tokens = len(self._tokenizer(self.prompt)["input_ids"])
        if self.prompt and self.max_length is not None and n_tokens >= self.max_length:
            raise EncoderError(
                f"the prompt alone has {n_tokens} tokens, and max_length is {self.max_length}: every document would "
                "get the same embedding; raise params.max_length, or shorten params.prompt"
            )


def load_encoder(
    files: ModelFiles,
    settings: EncoderSettings,
    device: str = "auto",
    max_batch_tokens: int | None = None,
    torch_compile: bool = False,
) -> Encoder:
    """Loads an encoder onto a device.

    Args:
        files: From `resolve_model`.
        settings: What changes its embeddings.
        device: `auto` (CUDA, then MPS, then CPU), or a torch device such as `cuda:1`.
        max_batch_tokens: Most tokens in one forward pass; None takes a few seconds to find the
            size that is fastest here.
        torch_compile: Take a minute to have torch.compile make the code of the forward pass.

    Raises:
        EncoderError: The files do not make an encoder of texts, the device is absent, or `max_length`
            exceeds what the model has positions for.
    """
    chosen = pick_device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    if not settings.trust_remote_code:
        _check_activations(files.folder)
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
    model.eval()
    encoder = Encoder(model, settings, chosen, max_batch_tokens, torch_compile)
    _log.info(
        "encoder %s: %d dimensions, %s pooling, at most %s tokens, %s",
        *(files.model, encoder.dim, encoder.pooling, encoder.max_length, encoder),
    )
    return encoder


def _check_activations(folder: Path) -> None:
    """Refuses a dense layer whose activation is code: sentence-transformers would take Tanh instead, with a warning."""
    for path in sorted(folder.glob("*/config.json")):
        own = json.loads(path.read_text(encoding="utf-8"))
        activation = own.get("activation_function", "torch.") if isinstance(own, dict) else "torch."
        if not str(activation).startswith("torch."):
            raise EncoderError(
                f"embedding_model: {path} names {activation} as activation, which is not of PyTorch; read that code, "
                "and set params.trust_remote_code: true to run it"
            )


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


def _first_position(transformer: torch.nn.Module) -> int:
    """Returns the number of a text's first position: RoBERTa and its kin count from padding_idx + 1."""
    table = _position_table(transformer)
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def _n_positions(transformer: torch.nn.Module) -> int | None:
    """Returns how many absolute positions the model has; None where it has no table of them."""
    table = _position_table(transformer)
    return None if table is None else table.num_embeddings - _first_position(transformer)


def _position_table(transformer: torch.nn.Module) -> torch.nn.Embedding | None:
    for name, module in transformer.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return module
    return None
