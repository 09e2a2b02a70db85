from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlfilter_core.heads.chunk_scores import ChunkCombination, by_document

SCORES = st.lists(st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=9), min_size=1, max_size=9)
WAYS: dict[str, Any] = {
    "mean": lambda scores: sum(scores) / len(scores),
    "max": max,
    "first": lambda scores: scores[0],
    "top_k_mean": lambda scores: sum(sorted(scores)[-2:]) / len(scores[-2:]),
}


@pytest.mark.parametrize("way", WAYS)
@given(documents=SCORES)
def test_each_document_gets_the_combination_of_its_own_chunks(way: Any, documents: list[list[float]]) -> None:
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    scores = np.concatenate(documents).astype(np.float32)
    combined = ChunkCombination(way, top_k=2).combine(scores, starts)
    assert combined.dtype == np.float32
    np.testing.assert_allclose(combined, [WAYS[way](chunks) for chunks in documents], rtol=1e-6, atol=1e-6)


@given(documents=SCORES)
def test_the_scores_of_each_document_s_chunks_are_kept_apart(documents: list[list[float]]) -> None:
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    scores = np.stack([np.concatenate(documents), np.zeros(sum(map(len, documents)))], axis=1).astype(np.float32)
    assert [chunks.tolist() for chunks in by_document(scores[:, 0], starts)] == documents


def test_no_documents_have_no_scores() -> None:
    none, starts = np.zeros(0, np.float32), np.zeros(0, np.int64)
    for way in WAYS:
        assert len(ChunkCombination(way).combine(none, starts)) == 0
    assert by_document(none, starts) == []


def test_only_what_differs_from_earlier_releases_is_recorded() -> None:
    assert ChunkCombination().provenance() == ChunkCombination("mean", 7).provenance() == {}
    assert ChunkCombination("max").provenance() == {"score_combine": "max"}
    assert ChunkCombination("top_k_mean", 2).provenance() == {"score_combine": "top_k_mean", "score_top_k": 2}
