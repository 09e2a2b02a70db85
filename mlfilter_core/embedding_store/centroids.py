"""The file of centroids: the centre of each cluster, its name, and what they were found on."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.embedding_store.fingerprint import Fingerprint
from mlfilter_core.errors import ConfigError, in_one_line
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import publish

FORMAT = "mlfilter-clusters/1"
METADATA = "mlfilter_clusters"  # the only key: safetensors writes several in random order
# Tensors. The names are JSON lines, uint8: the header has 100 MB at most, too few for the names of 60,000 clusters.
CENTROIDS, NAMES = "centroids", "names"
CELLS, SIZES, CLUSTERS = "cells", "cell_sizes", "cell_clusters"


@dataclass(frozen=True)
class Example:
    """A document of the sample that is near the centre of a cluster.

    Attributes:
        document_id: Its id.
        distance: 1 minus the cosine with the centre.
        text: Beginning of its text.
    """

    document_id: str
    distance: float
    text: str


@dataclass(frozen=True)
class ClusterName:
    """What tells a cluster from the others.

    Attributes:
        name: Its first words; `cluster 12` where no texts were read.
        words: Words that are frequent in it and rare in others, the most telling first.
        nearest: Documents of the sample nearest its centre.
        values: Shares of the most frequent values in the sample, by key and value.
    """

    name: str
    words: Sequence[str] = ()
    nearest: Sequence[Example] = ()
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class PackedNames(Sequence[ClusterName]):
    """Names as JSON lines, each read when it is asked for: of a million clusters, objects would take many gigabytes.

    Attributes:
        lines: The JSON lines.
    """

    lines: bytes

    @staticmethod
    def of(names: Sequence[ClusterName]) -> "PackedNames":
        """Returns names, packed."""
        if isinstance(names, PackedNames):
            return names
        return PackedNames(b"".join(orjson.dumps(name, option=orjson.OPT_APPEND_NEWLINE) for name in names))

    @functools.cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.flatnonzero(np.frombuffer(self.lines, np.uint8) == ord("\n"))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> ClusterName: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ClusterName]: ...
    def __getitem__(self, index: int | slice) -> ClusterName | Sequence[ClusterName]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        place = range(len(self))[index]
        start = int(self._ends[place - 1]) + 1 if place else 0
        fields = orjson.loads(self.lines[start : int(self._ends[place])])
        nearest = tuple(Example(**near) for near in fields["nearest"])
        return ClusterName(fields["name"], tuple(fields["words"]), nearest, fields["values"])


@dataclass(frozen=True)
class Cells:
    """Small parts of the space, in which near-duplicates are searched.

    Attributes:
        vectors: Their centres, float32 (m, dim), of unit length; a vector is in the cell with the nearest one.
        sizes: Documents of the sample in each, int64 (m,).
        clusters: Cluster with the centre nearest to that of each, int64 (m,).
    """

    vectors: NDArray[np.float32]
    sizes: NDArray[np.int64]
    clusters: NDArray[np.int64]

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the cells."""
        return _digest(self.vectors, self.sizes, self.clusters)

    def documents(self, of_clusters: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns about how many documents each cell has, float64 (m,), given those of each cluster."""
        in_sample = np.bincount(self.clusters, self.sizes, minlength=len(of_clusters))
        elsewhere = of_clusters[in_sample == 0].sum() / self.sizes.sum()  # clusters of which no cell is near
        return np.asarray(self.sizes * (elsewhere + (of_clusters / np.maximum(in_sample, 1))[self.clusters]))


@dataclass(frozen=True)
class Centroids:
    """The centres of clusters.

    Attributes:
        vectors: float32 (k, dim), of unit length.
        names: What tells each cluster from the others.
        encoder: Fingerprint of the encoder of the embeddings; empty where they do not state it.
        found_on: Request, numbers of documents and vectors, mean distance in the sample.
        cells: Cells that are smaller than the clusters; None where these are small, and in files of earlier releases.
    """

    vectors: NDArray[np.float32]
    names: Sequence[ClusterName]
    encoder: Fingerprint
    found_on: Mapping[str, Any]
    cells: Cells | None = None

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the vectors."""
        return _digest(self.vectors)

    @property
    def searched(self) -> "Cells | Centroids":
        """What near-duplicates are searched in: the cells, or the clusters where there are none."""
        return self.cells or self


def _digest(vectors: NDArray[np.float32], *numbers: NDArray[np.int64]) -> str:
    content = [f"{vectors.shape} ".encode(), vectors.astype("<f4").tobytes()]
    content += [each.astype("<i8").tobytes() for each in numbers]
    return hashlib.sha256(b"".join(content)).hexdigest()


def centroids_beside(folder: Path) -> Path:
    """Returns where a cluster job puts the centroids that it finds, given the folder of its files of clusters."""
    return folder.with_name(f"{folder.name}.safetensors")


def write_centroids(path: Path, centroids: Centroids) -> None:
    """Writes centroids as safetensors, complete or not at all.

    Raises:
        OSError: Writing failed.
    """
    from safetensors.numpy import save

    names = PackedNames.of(centroids.names)
    facts = {
        "format": FORMAT,
        "encoder": dict(centroids.encoder),
        "found_on": dict(centroids.found_on),
        "sha256": centroids.sha256,
        "names_sha256": hashlib.sha256(names.lines).hexdigest(),
    }
    tensors: dict[str, NDArray[Any]] = {
        CENTROIDS: np.ascontiguousarray(centroids.vectors, np.float32),
        NAMES: np.frombuffer(names.lines, np.uint8),
    }
    if (cells := centroids.cells) is not None:
        tensors |= {
            CELLS: np.ascontiguousarray(cells.vectors, np.float32),
            SIZES: cells.sizes.astype(np.int64),
            CLUSTERS: cells.clusters.astype(np.int64),
        }
        facts["cells_sha256"] = cells.sha256
    metadata = {METADATA: json.dumps(facts, ensure_ascii=False, sort_keys=True)}
    with publish(path) as temporary, open_new(temporary) as file:
        file.write(save(tensors, metadata))


def load_centroids(path: Path) -> Centroids:
    """Returns the content of a file of centroids.

    Raises:
        ConfigError: It is missing, broken, or not such a file.
    """
    try:
        status = path.stat()
        return _loaded(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    except Exception as error:  # safetensors raises its own errors, and OSError
        raise ConfigError(
            f"{path} is not a file of centroids ({in_one_line(error)}); remove it and cluster again, or name another "
            "file as centroids"
        ) from error


def load_same_centroids(path: Path, sha256: str) -> Centroids:
    """Returns the content of a file of centroids that was read before.

    Raises:
        ConfigError: They are not those with this digest, or as `load_centroids`.
    """
    centroids = load_centroids(path)
    _check_same(path, centroids.sha256, sha256)
    return centroids


def load_same_searched(path: Path, sha256: str) -> Centroids:
    """Returns the content of a file of centroids in which a search began.

    Raises:
        ConfigError: `searched` is not what has this digest, or as `load_centroids`.
    """
    centroids = load_centroids(path)
    _check_same(path, centroids.searched.sha256, sha256)
    return centroids


def _check_same(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise ConfigError(f"{path} was changed during the run; run the job again")


@functools.lru_cache(maxsize=1)
def _loaded(path: Path, *version: int) -> Centroids:
    """Returns the content of a version of a file; a verification asks for it with each of its files of clusters."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        facts = json.loads((file.metadata() or {}).get(METADATA, "{}"))
        if facts.get("format") != FORMAT:
            raise ValueError("its format is another one")
        vectors = file.get_tensor(CENTROIDS).astype(np.float32, copy=False)
        names = PackedNames(file.get_tensor(NAMES).tobytes())
        cells = None
        if "cells_sha256" in facts:
            cells = Cells(*(file.get_tensor(name) for name in (CELLS, SIZES, CLUSTERS)))
    centroids = Centroids(vectors, names, facts["encoder"], facts["found_on"], cells)
    if (
        centroids.sha256 != facts["sha256"]
        or hashlib.sha256(names.lines).hexdigest() != facts["names_sha256"]
        or len(names) != len(vectors)
        or (cells is not None and cells.sha256 != facts["cells_sha256"])
    ):
        raise ValueError("its content is not what was written")
    return centroids
