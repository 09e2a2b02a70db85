"""An output folder as after runs, made by the core itself."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlfilter_core.annotating.annotate_file import annotate_file
from mlfilter_core.annotating.annotate_request import AnnotateRequest
from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.files.task_files import TaskFile, find_files
from mlfilter_core.heads.head import Head
from mlfilter_core.heads.layers import mlp
from mlfilter_core.work.run_log import ROWS, RUN
from tests.conftest import TINY_DIM

STARTED = 1_790_000_000.0

Lines = Mapping[str, Sequence[Any]]


def head(name: str, seed: int, scale: float = 1.0) -> Head:
    """A linear head; with scale 0, it gives 1 for every document."""
    weights = np.random.default_rng(seed).standard_normal((1, TINY_DIM)).astype(np.float32) * scale
    return Head(name, mlp([torch.from_numpy(weights)], [torch.ones(1)], "relu"), {})


def make_outputs(
    folder: Path,
    model: ModelFiles,
    encoder: Encoder,
    files: Lines,
    heads: Sequence[Head] = (),
    output: str = "out",
    has_end: bool = True,
) -> Path:
    """Embeds and scores documents, and leaves the record of the runs; returns the output folder.

    Args:
        folder: Folder of the corpus and the outputs.
        model: Files of the encoder.
        encoder: The encoder.
        files: Records, or lines as bytes, by file name.
        heads: Heads to score with; none scores nothing.
        output: Name of the output folder.
        has_end: Whether the runs ended; otherwise they were killed.
    """
    corpus, output_dir = folder / f"{output}-corpus", folder / output
    for name, records in files.items():
        path = corpus / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
    request = EmbedRequest(model, encoder.settings, DocumentSchema(("text",)))
    embedded, annotated = [], []
    scoring = AnnotateRequest(output_dir / "annotated_data", {one.name: one.name for one in heads})
    for i, source in enumerate(find_files(corpus, "**/*.jsonl", SOURCE_SUFFIXES)):
        embeddings = TaskFile(f"{source.stem}.h5", source.stem, output_dir / "embeddings")
        rejects = output_dir / "rejected" / f"{source.stem}.jsonl"
        report = embed_file(source, embeddings.path, rejects, request, encoder)
        embedded.append(replace(report, worker=f"worker-{i % 2}", started=STARTED + 10 * i, seconds=8.0))
        if heads:
            scored = annotate_file(embeddings, scoring, list(heads))
            annotated.append(replace(scored, worker="worker-0", started=STARTED + 900 + i, seconds=0.5))
    write_run(output_dir / "logs" / "embed-one", "embed", map(embed_row, embedded), has_end)
    if heads:
        write_run(output_dir / "logs" / "annotate-one", "annotate", map(annotate_row, annotated), has_end, 900)
    return output_dir


def embed_row(report: Any) -> dict[str, Any]:
    facts = asdict(report)
    return {"file": facts.pop("source"), **facts, "documents/s": round(report.documents / report.seconds, 1)}


def annotate_row(report: Any) -> dict[str, Any]:
    facts = asdict(report)
    return {"file": facts.pop("embeddings"), **facts, "documents/s": round(report.documents / report.seconds, 1)}


def write_run(
    folder: Path, flow: str, rows: Any, has_end: bool = True, after_s: float = 0.0, output_dir: Path | None = None
) -> None:
    """Writes the record of a run to `<output_dir>/logs/<run>`; without an end, that of a killed run."""
    folder.mkdir(parents=True)
    rows = list(rows)
    written = str(output_dir or folder.parent.parent)
    about: dict[str, Any] = {
        "output_dir": written,
        "flow": flow,
        "started": STARTED + after_s - 5,
        "files": len(rows),
        "finished_before": 0,
    }
    if has_end:
        about |= {"seconds": 60.0, "failed": sum(row["status"] == "failed" for row in rows)}
    (folder / RUN).write_text(json.dumps(about))
    (folder / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))


def documents(name: str, n: int) -> list[dict[str, Any]]:
    """Documents of various lengths, some longer than the tiny encoder takes."""
    return [{"id": f"{name}-{i}", "text": f"{name} word {i} " * (1 + 7 * i % 31)} for i in range(n)]
