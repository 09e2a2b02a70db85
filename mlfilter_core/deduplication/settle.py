"""The third step of a deduplication job: the pairs of all buckets to groups, and the document that is kept of each."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.clustering.sample import beginnings_of
from mlfilter_core.deduplication.compare import SAME_TEXT, CompareRequest, first_rows, load_pairs
from mlfilter_core.deduplication.distribute import load_rows
from mlfilter_core.deduplication.edges import Edges, joined
from mlfilter_core.deduplication.groups import Groups, documents_in, groups_of
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import AnnotationError, ConfigError, OutputConflictError, SourceError, in_one_line
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import publish, publish_json
from mlfilter_core.work.progress import Progress, ProgressTeller
from mlfilter_core.work.same_request import REPLACE, check_same_request
from mlfilter_core.work.workload import ReportDefaults

FORMAT = "mlfilter-duplicates/1"
METADATA, IDENTITIES, NAMES = b"mlfilter_duplicates", b"mlfilter_identities", b"mlfilter_names"
N_LARGEST, N_MEMBERS = 50, 4  # groups that are listed, and documents of each beside the kept one
MANY = 0.5  # share of duplicates that is warned about
TEXT_CHARACTERS = 300  # of the beginning of a text

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SettleRequest:
    """What the groups of a run are.

    Attributes:
        path: File of the duplicates of the corpus.
        summary: File of counts and the largest groups.
        threshold: Lowest cosine of duplicates, or `exact`.
        compared: Request of the pairs.
        corpus: Number and digest of the files of embeddings, by their names and sizes.
        source_dir: Folder of the sources; None where they have not moved since they were embedded.
    """

    path: Path
    summary: Path
    threshold: float | Literal["exact"]
    compared: CompareRequest
    corpus: Mapping[str, Any]
    source_dir: Path | None

    def provenance(self) -> dict[str, Any]:
        """Returns the settings that change the groups."""
        divided = self.compared.divided
        search = divided.search
        return {
            "group": divided.group,
            "threshold": self.threshold,
            "prefer": divided.prefer,
            "score": divided.score,
            "neighbours": None if search is None else search.neighbours,
            "centroids_sha256": None if search is None else search.centroids_sha256,
            **({"cells_sha256": search.cells_sha256} if search is not None and search.has_cells else {}),
        }


@dataclass(frozen=True)
class SettleReport(ReportDefaults):
    """The result of finding the groups.

    Attributes:
        groups_file: Name of the file.
        output: Its path.
        status: `found`, or `skipped` where they were found before.
        documents: Number of documents of the corpus.
        duplicates: Number of documents that are not kept.
        groups: Number of groups.
        seconds: Wall time; 0 where skipped.
        worker: Name of the process; empty where skipped.
        started: Start time in seconds since 1970, UTC; 0 where skipped.
    """

    PRINTED: ClassVar[Sequence[str]] = ("documents", "duplicates", "groups", "seconds")
    SUMMED: ClassVar[Sequence[str]] = ()

    groups_file: str
    output: str
    status: Literal["found", "skipped"]
    documents: int
    duplicates: int
    groups: int
    seconds: float = 0.0
    worker: str = ""
    started: float = 0.0


@dataclass(frozen=True)
class Duplicates:
    """The duplicates of a corpus.

    Attributes:
        path: The file.
        made: Request, corpus, counts, digest.
        identities: Number of the version of each file of embeddings, as of `number_of`, uint64 (n_files,).
        names: Digest of the name of each file, without suffix, uint64 (n_files,).
    """

    path: Path
    made: Mapping[str, Any]
    identities: NDArray[np.uint64]
    names: NDArray[np.uint64]

    def place_of(self, stem: str) -> int | None:
        """Returns the place of a file of embeddings, given its name without suffix; None where it has none."""
        places = np.flatnonzero(self.names == np.uint64(_name_number(stem)))
        return int(places[0]) if len(places) else None

    def of_file(self, place: int) -> Any:
        """Returns the duplicates of a file, given its place, as a record batch of Arrow."""
        import pyarrow as pa

        with pa.memory_map(str(self.path)) as mapped, pa.ipc.open_file(mapped) as reader:
            return reader.get_batch(place)


def _name_number(stem: str) -> int:
    name = stem.encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def load_duplicates(path: Path) -> Duplicates:
    """Returns the duplicates of a corpus.

    Raises:
        ConfigError: The file is missing or broken.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
            metadata = reader.schema.metadata or {}
            made = json.loads(metadata[METADATA])
            if made["format"] != FORMAT or reader.num_record_batches != made["corpus"]["files"]:
                raise ValueError("its format is another one")
            identities, names = (np.frombuffer(metadata[key], "<u8") for key in (IDENTITIES, NAMES))
            return Duplicates(path, made, identities, names)
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is not a file of duplicates ({in_one_line(error)}); remove it and deduplicate again"
        ) from error


def finished_groups(request: SettleRequest) -> Duplicates | None:
    """Returns the duplicates that were found before; None where they have yet to be found.

    Raises:
        ConfigError: The file is broken.
        OutputConflictError: They were found with other settings, or on other files.
    """
    if not request.path.exists() or not request.summary.exists():
        return None
    duplicates = load_duplicates(request.path)
    check_same_request(request.path, duplicates.made["request"], request.provenance())
    before, now = duplicates.made["corpus"], dict(request.corpus)
    if before != now:
        is_of_scores = before | {"scores": None} == now | {"scores": None}
        raise OutputConflictError(
            f"{request.path} was found on other {'scores' if is_of_scores else 'embeddings'}: {before['files']} files "
            f"then, {now['files']} now, with other names or sizes; {REPLACE}"
        )
    return duplicates


def settle(request: SettleRequest) -> SettleReport:
    """Finds the groups of a corpus and writes its duplicates, complete or not at all.

    Raises:
        EmbeddingFileError: A file's rows are not divided.
        OSError: Reading or writing failed.
    """
    started = time.monotonic()
    files, divided = request.compared.files, request.compared.divided
    starts = first_rows(files, divided)
    edges, recall = edges_of(request)
    of_files = _of_rows(request, starts, documents_in(edges), "values")
    groups = groups_of(edges, np.concatenate([np.empty(0), *(values[rows] for values, rows in of_files)]))
    n_duplicates = int(groups.is_duplicate.sum())
    if n_duplicates > MANY * int(starts[-1]):
        _log.warning(
            "%d of %d documents are duplicates of others; if that is too many, stop the run, and look at what other "
            "thresholds do: ml_filter deduplicate --dry-run",
            *(n_duplicates, int(starts[-1])),
        )
    identities = _identities(request)
    ids = [ids[row] for ids, rows in _of_rows(request, starts, np.unique(groups.kept), "ids") for row in rows.tolist()]
    content = [groups.rows, groups.kept, groups.near, groups.cosines, identities, orjson.dumps(ids)]
    made = {
        "format": FORMAT,
        "request": request.provenance(),
        "corpus": dict(request.corpus),
        "documents": int(starts[-1]),
        "duplicates": n_duplicates,
        "groups": len(groups.rows) - n_duplicates,
        "sha256": hashlib.sha256(b"".join(map(bytes, (request.corpus["sha256"].encode(), *content)))).hexdigest(),
    }
    largest = _largest(request, starts, groups)
    request.summary.unlink(missing_ok=True)  # of an earlier run, which would be taken for this one's after a kill
    _write(request, starts, groups, made, identities, ids)
    # Last: groups are found once it is there.
    publish_json(request.summary, {**made, "recall": recall, "largest": largest})
    return report_of(request, made, time.monotonic() - started)


def report_of(request: SettleRequest, made: Mapping[str, Any], seconds: float = 0.0) -> SettleReport:
    """Returns the report on the groups of a corpus; `skipped` without seconds."""
    counts = (made["documents"], made["duplicates"], made["groups"])
    status: Literal["found", "skipped"] = "found" if seconds else "skipped"
    return SettleReport(request.path.name, str(request.path), status, *counts, seconds)


def edges_of(request: SettleRequest) -> tuple[Edges, dict[str, int] | None]:
    """Returns the pairs of all buckets, and how many pairs of probes the search compares."""
    parts: list[Edges] = []
    n_all = n_compared = 0
    teller, tasks = ProgressTeller(), request.compared.tasks()
    for n_done, task in enumerate(tasks):
        pairs = load_pairs(task, request.compared)
        parts.append(Edges(pairs.first, pairs.second, pairs.cosines))
        n_all, n_compared = n_all + pairs.recall[0], n_compared + pairs.recall[1]
        if teller.is_due():
            teller.tell(Progress(request.path.name, share=n_done / len(tasks)))
    has_search = request.compared.divided.search is not None
    return joined(parts), {"pairs": n_all, "found": n_compared} if has_search else None


def _of_rows(
    request: SettleRequest, starts: NDArray[np.int64], rows: NDArray[np.int64], name: str
) -> Iterator[tuple[Any, NDArray[np.int64]]]:
    """Yields an attribute of `DividedRows` of each file that has some of the rows, which ascend, and its own rows."""
    bounds = np.searchsorted(rows, starts)
    for place in np.flatnonzero(np.diff(bounds)).tolist():
        divided = load_rows(request.compared.files[place], request.compared.divided, [name])
        yield getattr(divided, name), rows[bounds[place] : bounds[place + 1]] - starts[place]


def _write(
    request: SettleRequest,
    starts: NDArray[np.int64],
    groups: Groups,
    made: Mapping[str, Any],
    identities: NDArray[np.uint64],
    ids: Sequence[str],
) -> None:
    """Writes a record batch for each file: its duplicates, and what is kept instead of them; `ids` of the kept ones."""
    import pyarrow as pa

    from mlfilter_core.embedding_store.duplicate_file import (
        COSINE,
        DUPLICATE_OF,
        KEPT_FILE,
        KEPT_ROW,
        NEAR_FILE,
        NEAR_ROW,
    )

    files = request.compared.files
    kept = np.unique(groups.kept)
    duplicates = np.flatnonzero(groups.is_duplicate)
    bounds = np.searchsorted(groups.rows[duplicates], starts)
    schema = pa.schema(
        [
            ("row", pa.int64()),
            (DUPLICATE_OF, pa.string()),
            (KEPT_FILE, pa.string()),
            (KEPT_ROW, pa.int64()),
            (NEAR_FILE, pa.string()),
            (NEAR_ROW, pa.int64()),
            (COSINE, pa.float32()),
        ],
        {
            METADATA: json.dumps(made, sort_keys=True).encode(),
            IDENTITIES: identities.tobytes(),
            NAMES: np.array([_name_number(file.stem) for file in files], "<u8").tobytes(),
        },
    )
    with publish(request.path) as temporary, open_new(temporary) as sink, pa.ipc.new_file(sink, schema) as writer:
        for place, (start, stop) in enumerate(pairwise(bounds.tolist())):
            of_file = duplicates[start:stop]
            columns: list[Any] = [groups.rows[of_file] - starts[place]]
            columns.append([ids[i] for i in np.searchsorted(kept, groups.kept[of_file]).tolist()])
            for rows in (groups.kept[of_file], groups.near[of_file]):
                places = np.searchsorted(starts, rows, side="right") - 1
                columns += [[files[i].relative for i in places.tolist()], rows - starts[places]]
            columns.append(pa.array(groups.cosines[of_file], mask=groups.cosines[of_file] == SAME_TEXT))
            arrays = [pa.array(each, kind) for each, kind in zip(columns, schema.types, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def _identities(request: SettleRequest) -> NDArray[np.uint64]:
    divided = request.compared.divided
    return np.array([load_rows(file, divided, []).identity for file in request.compared.files], "<u8")


def _largest(request: SettleRequest, starts: NDArray[np.int64], groups: Groups) -> list[dict[str, Any]]:
    """Returns the largest groups: size, the kept document, and the least similar ones among the others."""
    found = []
    for kept, members in groups.largest(N_LARGEST):
        others = members[groups.rows[members] != kept]
        shown = others[np.argsort(groups.cosines[others], kind="stable")[:N_MEMBERS]]
        documents = [document_at(request, starts, kept, None)]
        documents += [document_at(request, starts, int(groups.rows[i]), groups.cosines[i]) for i in shown.tolist()]
        found.append({"documents": len(members), "shown": documents})
    return found


def document_at(request: SettleRequest, starts: NDArray[np.int64], row: int, cosine: float | None) -> dict[str, Any]:
    """Returns a document as a person sees it; `cosine` is None for the kept one, and for a text equal to another."""
    place = int(np.searchsorted(starts, row, side="right")) - 1
    file, local = request.compared.files[place], row - int(starts[place])
    document_id, text = load_rows(file, request.compared.divided, ["ids"]).ids[local], ""
    with (
        suppress(SourceError, AnnotationError, OSError),
        EmbeddingFile(file.path, request.compared.divided.group) as opened,
    ):
        text = beginnings_of(opened, np.array([local]), request.source_dir)[local][1][:TEXT_CHARACTERS]
    return {
        "file": file.relative,
        "row": local,
        "document_id": document_id,
        "cosine": None if cosine in (None, SAME_TEXT) else round(float(cosine), 4),
        "text": text,
    }
