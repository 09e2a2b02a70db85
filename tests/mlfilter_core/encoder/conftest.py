from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers import AutoModel, AutoTokenizer

from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import ModelFiles, resolve_model
from mlfilter_core.encoder.settings import EncoderSettings
from tests.conftest import TINY_MAX_LENGTH

TOLERANCE = 1e-5
TEXTS = [
    "The chlorophyll in the leaves absorbs red and blue light. " * 60,  # some 700 tokens
    "x",
    "\u200b",
    "日本語の文章です。光合成について。",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "Größenübergänge für Müßiggänger ärgern Öl-Übersetzer.",
    "  leading and trailing spaces \n\t ",
    "A sentence of middling length, about nothing in particular.",
    "word " * 40,
]
Folder = Callable[..., Path]


def encode(encoder: Encoder, texts: list[str], batch_size: int = 64) -> NDArray[np.float32]:
    return encoder.encode(encoder.tokenize(texts), batch_size).embeddings()


def tiny(folder: Path, device: str = "cpu", has_openvino: bool = False, **settings: Any) -> Encoder:
    files = resolve_model(str(folder))
    return load_encoder(files, EncoderSettings(**settings), device, 512, has_openvino=has_openvino)


def reference(folder: Path, texts: list[str], max_length: int | None = None, **kwargs: Any) -> NDArray[np.float32]:
    """sentence-transformers' own embeddings."""
    model = SentenceTransformer(str(folder), device="cpu")
    if max_length is not None:
        model.max_seq_length = max_length
    return model.encode(texts, show_progress_bar=False, **kwargs)


def token_embeddings(folder: Path, text: str) -> torch.Tensor:
    """float32 (n_tokens, dim) of one text, by transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    features = tokenizer([text], truncation=True, max_length=TINY_MAX_LENGTH, return_tensors="pt")
    with torch.inference_mode():
        return model(**features).last_hidden_state[0]


@pytest.fixture(scope="session")
def minilm_encoder(minilm: ModelFiles) -> Encoder:
    return load_encoder(minilm, EncoderSettings(), "cpu")


@pytest.fixture
def save_modules(tiny_model: Path, tmp_path: Path) -> Folder:
    """Saves the tiny model with other modules after it, as sentence-transformers does."""

    def save(*modules: torch.nn.Module, **kwargs: Any) -> Path:
        model = SentenceTransformer(modules=[Transformer(str(tiny_model)), *modules], device="cpu", **kwargs)
        model.save(str(tmp_path / "saved"), create_model_card=False)
        return tmp_path / "saved"

    return save
