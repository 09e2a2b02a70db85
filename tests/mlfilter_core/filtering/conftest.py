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
from mlfilter_core.filtering.filter_request import FilterRequest
from mlfilter_core.filtering.make_survey import make_survey
from mlfilter_core.filtering.survey import NO_GROUP, Survey, SurveyRequest, load_survey
from mlfilter_core.filtering.thresholds import find_thresholds
from mlfilter_core.heads.head import Head
from mlfilter_core.heads.layers import mlp
from tests.conftest import TINY_DIM

WORDS = ["ba", "be", "bi", "bo", "bu", "ca", "ce", "ci", "co", "cu"]

Filter = Callable[..., FilterParameters]


def survey_of(
    scores: Sequence[float] | dict[str, Sequence[float]],
    tokens: Iterable[int] | None = None,
    groups: Sequence[str] | None = None,
    stem: str = "x",
) -> Survey:
    """Returns a survey; scores without names are those of `q`."""
    columns = scores if isinstance(scores, dict) else {"q": scores}
    n = len(next(iter(columns.values())))
    groups = groups or [NO_GROUP] * n
    places = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    return Survey(
        *(stem, tuple(columns), np.array(list(columns.values()), np.float32).T.reshape(n, len(columns))),
        tokens=np.array(list(tokens) if tokens is not None else [1] * n, np.int64),
        group=np.array([places[group] for group in groups], np.int32),
        groups=tuple(places),
        annotated={},
    )


@pytest.fixture
def annotated(tmp_path: Path, tiny_model: Path) -> Path:
    """Embeds and scores two files of 30 and 20 documents; returns the folder of corpus and outputs."""
    for name, n in (("a/x.jsonl", 30), ("y.jsonl", 20)):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # After a rejected line, row numbers and line numbers differ.
        lines = [json.dumps(document(name, i)) for i in range(n)]
        path.write_text("\n".join([*lines[:4], "{broken", *lines[4:]]))
    annotate(tmp_path, tiny_model)
    return tmp_path


def document(name: str, i: int) -> dict[str, Any]:
    text = " ".join(WORDS[(i + k * k) % 10] for k in range(1 + i % 7))
    return {"id": f"{name}-{i}", "text": text, "language": "de" if i % 3 else "en", "meta": {"i": i}}


def annotate(folder: Path, model: Path) -> None:
    """Embeds and scores the files of `corpus` that are not finished, to `out`."""
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
        Head("good", mlp([weights[:1]], [torch.zeros(1)], "relu"), {}),
        Head("fun", mlp([weights[1:]], [torch.ones(1)], "relu"), {}),
    ]
    request = AnnotateRequest(folder / "out" / "annotated_data", {"good": "1", "fun": "2"})
    for embeddings in find_files(folder / "out" / "embeddings", "**/*", EMBEDDING_SUFFIXES):
        annotate_file(embeddings, request, heads)


@pytest.fixture
def parameters(annotated: Path) -> Filter:
    """Returns the parameters of a filter run over the annotated files; keyword arguments override them."""

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


def request_for(folder: Path, scores: tuple[str, ...] = ("q",), per: str | None = None) -> SurveyRequest:
    """Returns a request for surveys without embeddings."""
    return SurveyRequest(folder / "surveys", scores, per, None, "train")


def surveyed(params: FilterParameters) -> tuple[list[TaskFile], FilterRequest]:
    """Surveys all annotated files; returns them with the request of the filter run."""
    files, survey = annotated_files(params), SurveyRequest.of(params)
    for file in files:
        make_survey(file, survey)
    return files, FilterRequest.of(
        params, find_thresholds(params.keep, lambda: [load_survey(file, survey) for file in files])
    )
