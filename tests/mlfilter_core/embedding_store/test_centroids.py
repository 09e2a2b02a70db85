"""The file of centroids."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlfilter_core.embedding_store.centroids import (
    Cells,
    Centroids,
    ClusterName,
    Example,
    load_centroids,
    write_centroids,
)
from mlfilter_core.errors import ConfigError


def centroids_of(n_clusters: int, name: ClusterName) -> Centroids:
    vectors = np.ones((n_clusters, 1), np.float32)
    return Centroids(
        vectors, [ClusterName(f"cluster {i}", name.words, name.nearest) for i in range(n_clusters)], {}, {}
    )


def test_names_may_be_longer_than_a_header_of_safetensors(tmp_path: Path) -> None:
    name = ClusterName("", ("数学",) * 10, (Example("x", 0.25, "数" * 200),) * 3)
    written = centroids_of(50_000, name)
    write_centroids(tmp_path / "centroids", written)
    assert (tmp_path / "centroids").stat().st_size > 100_000_000
    names = load_centroids(tmp_path / "centroids").names
    assert len(names) == 50_000
    for place in (0, 1, 49_999, -1):
        assert names[place] == written.names[place]
    assert names[7:9] == written.names[7:9]
    with pytest.raises(IndexError):
        names[50_000]


def test_a_changed_byte_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "centroids"
    written = centroids_of(3, ClusterName("", ("word",), (Example("x", 0.25, "text"),)))
    write_centroids(
        path, replace(written, cells=Cells(np.eye(2, dtype=np.float32), np.array([3, 4]), np.array([2, 0])))
    )
    content = path.read_bytes()
    for place in range(8 + int.from_bytes(content[:8], "little"), len(content)):  # behind the header
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ConfigError, match="is not a file of centroids"):
            load_centroids(path)


def test_documents_of_cells_are_those_of_their_clusters() -> None:
    cells = Cells(np.eye(3, dtype=np.float32), sizes=np.array([1, 3, 4]), clusters=np.array([0, 0, 2]))
    assert cells.documents(np.array([100, 0, 8])).tolist() == [25, 75, 8]
    # No cell is near the second cluster: its documents may be in any.
    assert cells.documents(np.array([100, 16, 8])).tolist() == [27, 81, 16]
