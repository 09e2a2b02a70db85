"""Annotated files with the embeddings and the sources that they were made from."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlfilter_core.annotating.annotate_file import annotate_file
from mlfilter_core.annotating.annotate_request import AnnotateRequest
from mlfilter_core.config.embedding import EmbeddingPipelineParameters
from mlfilter_core.config.filtering import FilterParameters
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding.work import embed_work
from mlfilter_core.embedding_store.layout import EMBEDDING_SUFFIXES
from mlfilter_core.files.task_files import TaskFile, find_files
from mlfilter_core.filtering.survey import NO_GROUP, Survey
from mlfilter_core.heads.head import Head
from tests.conftest import TINY_DIM

WORDS = ["ba", "be", "bi", "bo", "bu", "ca", "ce", "ci", "co", "cu"]

Filter = Callable[..., FilterParameters]


def survey_of(
    scores: Sequence[float] | dict[str, Sequence[float]],
    tokens: Iterable[int] | None = None,
    groups: Sequence[str] | None = None,
    stem: str = "x",
) -> Survey:
    """Returns a survey, of the score `q` where the scores have no names."""
    columns = scores if isinstance(scores, dict) else {"q": scores}
    n = len(next(iter(columns.values())))
    names = tuple(dict.fromkeys(groups or [NO_GROUP] * n))
    return Survey(
        *(stem, tuple(columns), np.array(list(columns.values()), np.float32).T.reshape(n, len(columns))),
        tokens=np.array(list(tokens) if tokens is not None else [1] * n, np.int64),
        group=np.array([names.index(group) for group in groups or [NO_GROUP] * n], np.int32),
        groups=names,
        annotated={},
    )


@pytest.fixture
def annotated(tmp_path: Path, tiny_model: Path) -> Path:
    """Embeds and scores two files of 30 and 20 documents; returns the folder that holds all."""
    for name, n in (("a/x.jsonl", 30), ("y.jsonl", 20)):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # A rejected line moves all rows after it.
        lines = [json.dumps(document(name, i)) for i in range(n)]
        path.write_text("\n".join([*lines[:4], "{broken", *lines[4:]]))
    annotate(tmp_path, tiny_model)
    return tmp_path


def document(name: str, i: int) -> dict[str, Any]:
    text = " ".join(WORDS[(i + k * k) % 10] for k in range(1 + i % 7))
    return {"id": f"{name}-{i}", "text": text, "language": "de" if i % 3 else "en", "meta": {"i": i}}


def annotate(folder: Path, model: Path) -> None:
    """Embeds and scores the files of `corpus` that are not yet, to `out`."""
    params = EmbeddingPipelineParameters(
        input_dir=folder / "corpus",
        text_field="text",
        keys_to_index=("language",),
        output_dir=folder / "out",
        embedding_model=str(model),
        max_batch_tokens=512,
    )
    work = embed_work(params)
    for file in find_files(folder / "corpus", "**/*", SOURCE_SUFFIXES):
        work.run(file)
    weights = torch.randn((2, TINY_DIM), generator=torch.Generator().manual_seed(0))
    heads = [
        Head("good", "", (weights[:1],), (torch.zeros(1),), "relu", {}),
        Head("fun", "", (weights[1:],), (torch.ones(1),), "relu", {}),
    ]
    request = AnnotateRequest(folder / "out" / "annotated_data", {"good": "1", "fun": "2"})
    for embeddings in find_files(folder / "out" / "embeddings", "**/*", EMBEDDING_SUFFIXES):
        annotate_file(embeddings, request, heads)


@pytest.fixture
def parameters(annotated: Path) -> Filter:
    """Returns the parameters of a filter over the annotated files; keyword arguments replace some."""

    def parameters(**params: Any) -> FilterParameters:
        given = {
            "annotated_directory": annotated / "out" / "annotated_data",
            "embeddings_directory": annotated / "out" / "embeddings",
            "output_dir": annotated / "out",
            "keep": {"scores": "good"},
            **params,
        }
        return FilterParameters.model_validate(given)

    return parameters


def annotated_files(params: FilterParameters) -> list[TaskFile]:
    return find_files(params.annotated_directory, params.glob_pattern, SOURCE_SUFFIXES)


def lines_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]
