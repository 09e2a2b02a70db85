"""The first step of a cluster job: a sample of the documents of a file, with the beginnings of some texts.

Whether a document is in the sample depends on the seed, its file's name and its row alone.
"""

import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.clustering.directions import directions
from mlfilter_core.compute.splitmix64 import numbers_of_rows
from mlfilter_core.embedding_store.fingerprint import Fingerprint, fingerprint
from mlfilter_core.embedding_store.layout import DOCUMENT_ID
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.embedding_store.text_beginnings import TextBeginnings, strings_at
from mlfilter_core.errors import AnnotationError, EmbeddingFileError, SourceError
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.numpy_archives import DAMAGED, column, is_damage
from mlfilter_core.files.publishing import publish
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work.workload import ReportDefaults

SAMPLE_FOLDER, SUFFIX = ".sample", ".npz"
TEXT_CHARACTERS = 2000  # of each text: enough words to tell topics apart
DESCRIBED_BY = "language"  # where a job names no keys
VALUE_CHARACTERS = 100  # of a value that describes a document; arbitrary
SALT = b"sample"


@dataclass(frozen=True)
class SampleRequest:
    """What the samples of a run contain.

    Attributes:
        folder: Folder of the samples.
        group: Name of the HDF5 group.
        seed: Seed of the draws.
        share: Share of the documents to draw, from 0 to 1.
        text_share: Share of the documents whose texts are read; they are among those.
        source_dir: Folder of the sources; None where they have not moved since they were embedded.
        describe_by: Keys in the index whose values are read with the texts; None for the language, where it is stored.
    """

    folder: Path
    group: str
    seed: int
    share: float
    text_share: float
    source_dir: Path | None
    describe_by: Sequence[str] | None

    def output(self, file: TaskFile) -> Path:
        return file.output(self.folder, SUFFIX)

    def facts(self) -> dict[str, Any]:
        """Returns what the sample of a file depends on besides the embeddings."""
        return {
            "group": self.group,
            "seed": self.seed,
            "share": self.share,
            "text_share": self.text_share,
            "source_dir": None if self.source_dir is None else str(self.source_dir),
            "describe_by": None if self.describe_by is None else list(self.describe_by),
        }


@dataclass(frozen=True)
class SampledText:
    """A document of a sample whose text is read.

    Attributes:
        document_id: Its id, or its row.
        beginning: Beginning of its text.
        values: Its values of the keys that describe clusters.
    """

    document_id: str
    beginning: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Sample:
    """The sample of a file.

    Attributes:
        documents: Number of documents of the file.
        encoder: Fingerprint of its encoder; empty where another tool wrote the file.
        order: uint64 (n,), random numbers of the drawn documents, which order the sample of a corpus.
        directions: float16 (n, dim), of unit length.
        texts: The first documents of the sample, with texts.
        without_texts: Why texts are not read; empty where they are.
    """

    documents: int
    encoder: Fingerprint
    order: NDArray[np.uint64]
    directions: NDArray[np.float16]
    texts: Sequence[SampledText]
    without_texts: str


@dataclass(frozen=True)
class SampleReport(ReportDefaults):
    """The result of drawing from one file.

    Attributes:
        embeddings: Path relative to the folder of embeddings.
        output: Path of the sample.
        status: `sampled`, or `skipped` where the sample was finished before.
        documents: Number of documents of the file.
        drawn: Number of drawn documents.
        seconds: Wall time; 0 where skipped.
        worker: Name of the process; empty where skipped.
        started: Start time in seconds since 1970, UTC; 0 where skipped.
    """

    PRINTED: ClassVar[Sequence[str]] = ("documents", "drawn", "seconds", "documents/s")
    SUMMED: ClassVar[Sequence[str]] = ("documents", "drawn")

    embeddings: str
    output: str
    status: Literal["sampled", "skipped"]
    documents: int
    drawn: int
    seconds: float = 0.0
    worker: str = ""
    started: float = 0.0


def draw_sample(file: TaskFile, request: SampleRequest) -> Sample:
    """Returns the sample of a file. An embedding of zeros has no direction, and is not drawn.

    Raises:
        EmbeddingFileError: The file is broken, an embedding is not finite, or a key is missing.
        OSError: Reading failed.
    """
    with EmbeddingFile(file.path, request.group) as embeddings:
        salt = SALT + request.seed.to_bytes(4, "big")
        order = numbers_of_rows(file.stem, np.arange(embeddings.n_rows), salt)
        is_drawn = _lowest(order, request.share)
        found = [np.empty((0, embeddings.dim), np.float16)]
        for rows, vectors in directions(embeddings):
            is_drawn[rows] &= vectors.any(axis=1)
            found.append(vectors[is_drawn[rows]].astype(np.float16))
        drawn = np.flatnonzero(is_drawn)
        in_order = np.argsort(order[drawn], kind="stable")
        has_text = is_drawn & _lowest(order, request.text_share)
        values = _values(embeddings, np.flatnonzero(has_text), request.describe_by)
        try:
            texts, without_texts = beginnings_of(embeddings, np.flatnonzero(has_text), request.source_dir), ""
        except (SourceError, AnnotationError) as error:
            texts, without_texts = {}, str(error)
        first = [row for row in drawn[in_order].tolist() if row in texts]
        return Sample(
            embeddings.n_rows,
            fingerprint(embeddings.provenance),
            order[drawn[in_order]],
            np.concatenate(found)[in_order],
            [SampledText(*texts[row], values[row]) for row in first],
            without_texts,
        )


def make_sample(file: TaskFile, request: SampleRequest) -> SampleReport:
    """Draws the sample of a file and writes it, complete or not at all.

    Raises:
        EmbeddingFileError, OSError: As for `draw_sample`.
    """
    started = time.monotonic()
    identity = version_of(file.path)
    sample = draw_sample(file, request)
    facts = {
        **request.facts(),
        "embeddings": identity,
        "documents": sample.documents,
        "dim": sample.directions.shape[1],
        "encoder": dict(sample.encoder),
        "without_texts": sample.without_texts,
    }
    with publish(request.output(file)) as temporary, open_new(temporary) as sink:
        np.savez(
            sink,
            order=sample.order,
            directions=sample.directions,
            texts=np.frombuffer(orjson.dumps(sample.texts), np.uint8),
            facts=np.frombuffer(orjson.dumps(facts), np.uint8),
        )
    seconds = time.monotonic() - started
    return _report(file, request, "sampled", sample.documents, len(sample.order), seconds)


def finished_sample(file: TaskFile, request: SampleRequest) -> SampleReport | None:
    """Returns the report of a finished sample; None where one has yet to be drawn."""
    sample = load_sample(file, request)
    return None if sample is None else _report(file, request, "skipped", sample.documents, len(sample.order))


def load_sample(file: TaskFile, request: SampleRequest) -> Sample | None:
    """Returns the sample of the present version of a file; None where there is none, or it is damaged."""
    try:
        with open(request.output(file), "rb") as opened, zipfile.ZipFile(opened) as archive:
            facts = orjson.loads(column(archive, "facts", np.uint8).data)
            if any(facts[name] != value for name, value in request.facts().items()):
                return None
            if facts["embeddings"] != version_of(file.path):
                return None
            texts = orjson.loads(column(archive, "texts", np.uint8).data)
            return Sample(
                facts["documents"],
                facts["encoder"],
                column(archive, "order", np.uint64),
                column(archive, "directions", np.float16).reshape(-1, facts["dim"]),
                [SampledText(**each) for each in texts],
                facts["without_texts"],
            )
    except (OSError, *DAMAGED) as error:
        if not is_damage(error):
            raise
        return None


def version_of(path: Path) -> list[int]:
    """Returns size and modification time of a file, in bytes and ns."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _report(
    file: TaskFile,
    request: SampleRequest,
    status: Literal["sampled", "skipped"],
    documents: int,
    drawn: int,
    seconds: float = 0.0,
) -> SampleReport:
    return SampleReport(file.relative, str(request.output(file)), status, documents, drawn, seconds)


def _lowest(order: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Returns which numbers are in the lowest share of all that there could be."""
    if share >= 1:
        return np.ones(len(order), bool)
    return order < np.uint64(share * 2**64)


def _values(
    embeddings: EmbeddingFile, rows: NDArray[np.int64], describe_by: Sequence[str] | None
) -> dict[int, dict[str, str]]:
    """Returns the values of the keys that describe clusters, of some documents, by row and key.

    Raises:
        EmbeddingFileError: The file does not store one of the keys.
    """
    places = {key: embeddings.find(key) for key in describe_by or [DESCRIBED_BY]}
    found: dict[int, dict[str, str]] = {row: {} for row in rows.tolist()}
    for key, place in places.items():
        if place is not None:
            of_key = strings_at(embeddings, place, rows, VALUE_CHARACTERS)
            for values, value in zip(found.values(), of_key, strict=True):
                values[key] = value
        elif describe_by is not None:
            raise EmbeddingFileError(
                f'{embeddings.path} has no "{key}", which params.describe_by names; embed with it in keys_to_index, or '
                f"name others of {', '.join(embeddings.names())}"
            )
    return found


def beginnings_of(
    embeddings: EmbeddingFile, rows: NDArray[np.int64], source_dir: Path | None
) -> dict[int, tuple[str, str]]:
    """Returns id and beginning of the text of some documents, by row.

    Raises:
        AnnotationError, SourceError: The texts are neither stored nor in a source that can be read.
    """
    if not len(rows):
        return {}
    with TextBeginnings(embeddings, source_dir, TEXT_CHARACTERS) as texts:
        beginnings = texts.of(rows)
    has_ids = DOCUMENT_ID in embeddings.names()
    ids = strings_at(embeddings, DOCUMENT_ID, rows) if has_ids else [f"row {row}" for row in rows.tolist()]
    return dict(zip(rows.tolist(), zip(ids, beginnings, strict=True), strict=True))
