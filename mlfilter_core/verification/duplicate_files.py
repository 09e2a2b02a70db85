"""Checks one file of duplicates, with its written documents, against its embeddings and the corpus."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.annotating.annotated_format import SUFFIXES
from mlfilter_core.config.annotation import ANNOTATED_DIR
from mlfilter_core.config.deduplication import DEDUPLICATED_DIR, DUPLICATES_DIR, GROUPS_FILE, SUMMARY_FILE
from mlfilter_core.corpus.lines import Line, OverlongLine
from mlfilter_core.corpus.sources import open_source
from mlfilter_core.deduplication.settle import Duplicates, load_duplicates
from mlfilter_core.embedding_store.duplicate_file import COSINE, KEPT_ROW, ROW_GROUP, SUFFIX, made_from, number_of
from mlfilter_core.embedding_store.layout import DOCUMENT_ID, EMBEDDING_SUFFIXES, N_TOKENS
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import ConfigError, DuplicateFileError
from mlfilter_core.files.identity import is_same_file
from mlfilter_core.verification.discrepancies import FileCheck, Findings, Place
from mlfilter_core.verification.duplicate_pairs import POINTERS, DuplicatePairs, OwnEmbeddings
from mlfilter_core.verification.filtered_documents import source_lines
from mlfilter_core.verification.kept_lines import check_kept_lines, not_blank
from mlfilter_core.verification.output_kinds import Output, OutputKind, RelatedFiles, VerifyRequest, without_suffix
from mlfilter_core.verification.source_account import find_source
from mlfilter_core.verification.stated_facts import StatedDuplicates, StatedFacts, UnreadableOutputError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

AGAIN = "deduplicate again"
BLOCK_BYTES = 256 << 20  # of the directions of the duplicates that are checked at a time, and of those near them
NO_EMBEDDINGS = "against their embeddings, which are not in this folder"
NO_ANNOTATIONS = "against their annotated files, which are not in this folder"
NO_GROUPS = f"against {GROUPS_FILE}, which is not in this folder"
OUTPUT_SUFFIXES = tuple(SUFFIXES.values())


def find_duplicates(relative: str) -> Output | None:
    """Returns the file of duplicates that a file is, or was written beside as its kept documents."""
    top, _, name = relative.partition("/")
    suffixes = {DUPLICATES_DIR: (SUFFIX,), DEDUPLICATED_DIR: OUTPUT_SUFFIXES}.get(top, ())
    if not name.endswith(suffixes):
        return None
    stem = without_suffix(name, suffixes)
    return Output(f"{DUPLICATES_DIR}/{stem}{SUFFIX}", stem)


def evidence_of(relative: str) -> tuple[str, ...]:
    """Returns the files that `read_duplicates` reads."""
    return (relative,)


def read_duplicates(relative: str, request: VerifyRequest) -> StatedFacts:
    """Returns what a file of duplicates states.

    Raises:
        UnreadableOutputError: It is missing or broken.
    """
    path = request.output_dir / relative
    try:
        made = made_from(path)
        n_bytes = path.stat().st_size + (int(made["output"]["bytes"]) if made["output"] else 0)
        sha256 = str(made["request"]["groups_sha256"])
        stated = StatedDuplicates(sha256, int(made["kept"]), int(made["tokens"]), int(made["kept_tokens"]))
        return StatedFacts(n_bytes, int(made["documents"]), duplicates=stated)
    except (DuplicateFileError, OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableOutputError(str(error)) from error


def check_duplicates(relative: str, request: VerifyRequest, related: RelatedFiles) -> FileCheck:
    """Checks one file of duplicates with its written documents; never raises for what is wrong with it.

    Args:
        relative: The file of duplicates, below the output folder; it may be missing.
        request: Request of the verification.
        related: Candidates for its embeddings and its annotated file.
    """
    check = _Check(relative, request, related, Findings(request.output_dir / relative, AGAIN))
    with check.findings.collecting():
        check.run()
    return check.result()


@dataclass
class _Check:
    """The check of one file, with its findings so far."""

    relative: str
    request: VerifyRequest
    related: RelatedFiles
    findings: Findings
    not_checked: list[str] = field(default_factory=list)
    made: Mapping[str, Any] = field(default_factory=dict)
    n_bytes: int = 0

    @property
    def stem(self) -> str:
        return self.relative.removeprefix(f"{DUPLICATES_DIR}/").removesuffix(SUFFIX)

    def run(self) -> None:
        import pyarrow.parquet as pq

        self.made = made_from(self.findings.path)
        with ExitStack() as files:
            marks = files.enter_context(pq.ParquetFile(self.findings.path))
            self._check_counts(marks.metadata.num_rows)
            written = self._find_written()
            corpus = self._find_corpus()
            if not self.request.read_content or marks.metadata.num_rows != self.made["documents"]:
                return
            self.n_bytes += self.findings.path.stat().st_size
            embeddings = self._find_embeddings(files)
            is_kept = _is_kept(marks)
            if (n_kept := int(is_kept.sum())) != self.made["kept"]:
                self.findings.add("kept", f"it states {self.made['kept']:,} kept documents, and marks {n_kept:,}")
            if embeddings is not None:
                self._check_tokens(embeddings.file, is_kept)
            with self.findings.collecting():
                self._check_marks(marks, is_kept, corpus, embeddings)
            if written is not None:
                self._check_written(written, is_kept, embeddings, files)

    def result(self) -> FileCheck:
        place = None
        if self.made:
            tally = (self.made["documents"], self.made["documents"] - self.made["kept"])
            place = Place(DUPLICATES_DIR, self.stem, self.made["request"], tally)
        return FileCheck(
            self.relative, self.findings.problems(), tuple(self.not_checked), n_bytes=self.n_bytes, place=place
        )

    def _check_counts(self, n_rows: int) -> None:
        made = self.made
        if n_rows != made["documents"]:
            self.findings.add("rows", f"it has {n_rows:,} rows and states {made['documents']:,}")
        for part, whole in (("kept", "documents"), ("kept_tokens", "tokens")):
            if not 0 <= made[part] <= made[whole]:
                self.findings.add(part, f"it states {made[part]:,} {part} of {made[whole]:,} {whole}")

    def _find_written(self) -> str | None:
        """Returns the written documents, relative to the output folder; None where there are none, or they are lost."""
        recorded, asked = self.made["output"], self.made["request"]["documents"]
        own = f"{DEDUPLICATED_DIR}/{self.stem}{SUFFIXES[self.made['request']['compression']]}" if asked else None
        for suffix in OUTPUT_SUFFIXES:
            other = f"{DEDUPLICATED_DIR}/{self.stem}{suffix}"
            if other != own and (self.request.output_dir / other).exists():
                self.findings.add("stale", f"{other} is of another run", f"{AGAIN}, or remove what is not wanted")
        if (recorded is None) != (own is None):
            self.findings.add("output", "its record of written documents contradicts its request")
        if own is None or recorded is None:
            return None
        path = self.request.output_dir / own
        if not path.exists():
            self.findings.add("written", f"{own} is missing, though {self.relative} exists")
            return None
        is_same = is_same_file(path, recorded, read_content=False)
        if is_same is False:
            self.findings.add("written", f"{own} changed since it was written: it has another size")
        elif is_same is None and not self.request.read_content:
            copied = f"{own} was copied or changed since it was written"
            self.findings.add("written", copied, "check without --quick to compare the content")
        return own

    def _find_corpus(self) -> Duplicates | None:
        """Returns the duplicates of the corpus; None, with a problem or a remark, where these are not here."""
        try:
            corpus = load_duplicates(self.request.output_dir / GROUPS_FILE)
        except ConfigError:  # the check of the whole folder says what is wrong with it
            self.not_checked.append(NO_GROUPS)
            return None
        if corpus.made["sha256"] == self.made["request"]["groups_sha256"]:
            return corpus
        self.findings.add("corpus", f"was made from other duplicates than those of {GROUPS_FILE}")
        return None

    def _find_embeddings(self, files: ExitStack) -> OwnEmbeddings | None:
        """Returns the embeddings; None, with a problem or a remark, where these are not here."""
        group = str(self.made["request"]["group"])
        names = [name for name in self.related.outputs if name.endswith(EMBEDDING_SUFFIXES)]
        paths = [path for name in names if (path := self.request.output_dir / name).exists()]
        for path in paths:
            embeddings = files.enter_context(EmbeddingFile(path, group))
            if not embeddings.is_version(self.made["embeddings"], read_content=True):
                continue
            if embeddings.n_rows == self.made["documents"]:
                folder = path.parents[self.stem.count("/")]
                return OwnEmbeddings(embeddings, folder, group)
            self.findings.add("rows", f"has {self.made['documents']} rows, and {path} {embeddings.n_rows}")
            return None
        if paths:
            self.findings.add("embeddings", f"was made from another version of {' or '.join(map(str, paths))}")
        else:
            self.not_checked.append(NO_EMBEDDINGS)
        return None

    def _check_tokens(self, embeddings: EmbeddingFile, is_kept: NDArray[np.bool_]) -> None:
        has_tokens = N_TOKENS in embeddings.names()
        tokens = embeddings.array(N_TOKENS, slice(None)).astype(np.int64) if has_tokens else np.zeros(len(is_kept), int)
        for name, n in (("tokens", int(tokens.sum())), ("kept_tokens", int(tokens[is_kept].sum()))):
            if self.made[name] != n:
                self.findings.add(f"number of {name}", f"it states {self.made[name]:,} {name}, and there are {n:,}")

    def _check_marks(
        self,
        marks: "pq.ParquetFile",
        is_kept: NDArray[np.bool_],
        corpus: Duplicates | None,
        embeddings: OwnEmbeddings | None,
    ) -> None:
        """Checks ids and duplicates, some rows at a time."""
        threshold = None if corpus is None else corpus.made["request"]["threshold"]
        pairs = DuplicatePairs(self.request.output_dir, self.stem, threshold, embeddings, self.findings)
        expected = None if corpus is None else self._expected(corpus, is_kept)
        dim = 1 if embeddings is None else embeddings.file.dim
        n_checked = 0
        for start, some in _tables(marks, max(1, min(ROW_GROUP, BLOCK_BYTES // (4 * dim)))):
            rows = start + np.flatnonzero(~is_kept[start : start + len(some)])
            if embeddings is not None:
                self._check_ids(start, some, embeddings.file)
            duplicates = some.take(rows - start)
            has_all = sum(duplicates[name].null_count for name in POINTERS) == 0
            n_values = sum(len(some) - some[name].null_count for name in (*POINTERS, COSINE))
            n_expected = len(rows) * len(POINTERS) + len(rows) - duplicates[COSINE].null_count
            if not has_all or n_values != n_expected:
                where = f"rows {start} to {start + len(some) - 1}"
                self.findings.add("null", f"{where} have only some of {', '.join(POINTERS)}, or values of a kept one")
                continue
            if expected is not None:
                own = expected.slice(n_checked, len(rows))
                if any(not own[name].equals(duplicates[name].combine_chunks()) for name in (*POINTERS, COSINE)):
                    where = f"rows {start} to {start + len(some) - 1}"
                    self.findings.add("corpus", f"{where} have other duplicates than {GROUPS_FILE} has of them")
            n_checked += len(rows)
            pairs.check(rows, duplicates)

    def _expected(self, corpus: Duplicates, is_kept: NDArray[np.bool_]) -> Any:
        """Returns the duplicates of this file in those of the corpus, a record batch; None, with a problem, if none."""
        # Copies of a file have the same number; what is marked in each may differ.
        number = number_of(self.made["embeddings"])
        for place in np.flatnonzero(corpus.identities == np.uint64(number)).tolist():
            batch = corpus.of_file(place)
            if np.array_equal(batch["row"].to_numpy(), np.flatnonzero(~is_kept)):
                return batch
        self.findings.add("corpus", f"has other duplicates than {GROUPS_FILE} has of it")
        return None

    def _check_ids(self, start: int, some: Any, embeddings: EmbeddingFile) -> None:
        has_ids = DOCUMENT_ID in embeddings.names()
        if has_ids != (DOCUMENT_ID in some.column_names):
            self.findings.add("ids", f"has {'no' if has_ids else 'a'} {DOCUMENT_ID}, unlike {embeddings.path}")
        elif has_ids:
            rows = slice(start, start + len(some))
            if some[DOCUMENT_ID].to_pylist() != embeddings.strings(DOCUMENT_ID, rows):
                self.findings.add("ids", f"rows {rows.start} to {rows.stop - 1} have the ids of other documents")

    def _check_written(
        self, written: str, is_kept: NDArray[np.bool_], embeddings: OwnEmbeddings | None, files: ExitStack
    ) -> None:
        origin = self._find_origin(embeddings)
        lines: Iterator[Line | OverlongLine] | None = None
        with self.findings.collecting():
            reader = files.enter_context(open_source(self.request.output_dir / written))
            if origin is not None:
                path, relative = origin
                source = files.enter_context(open_source(path, None, relative))
                is_annotated = self.made["request"]["documents"] == "annotated"
                assert is_annotated or embeddings is not None
                lines = (
                    not_blank(source) if embeddings is None or is_annotated else source_lines(source, embeddings.file)
                )
            check_kept_lines(reader, written, lines, None if origin is None else origin[0], is_kept, self.findings)
            self.n_bytes += reader.n_bytes
            if reader.sha256 != self.made["output"]["sha256"]:
                self.findings.add("sha256", f"{written} changed since it was written: another sha256")

    def _find_origin(self, embeddings: OwnEmbeddings | None) -> tuple[Path, str] | None:
        """Returns the file whose lines were written, and its path in the corpus; None where it is not here."""
        if self.made["request"]["documents"] == "annotated":
            names = [f"{ANNOTATED_DIR}/{self.stem}{suffix}" for suffix in OUTPUT_SUFFIXES]
            paths = [path for name in names if (path := self.request.output_dir / name).exists()]
            if not paths:
                self.not_checked.append(NO_ANNOTATIONS)
            return (paths[0], "") if paths else None
        if embeddings is None:
            return None
        made = embeddings.file.provenance
        if made is None:
            self.findings.add("source", f"{embeddings.file.path} does not name the source of the documents")
            return None
        source = find_source(made.source, self.request, self.findings)
        return None if source is None else (source, str(made.source["path"]))


class CorpusDuplicates:
    """Compares the sums over all files with what is stated of the corpus."""

    def __init__(self, request: VerifyRequest) -> None:
        self._output_dir = request.output_dir
        self._n_files = self._documents = self._duplicates = 0

    def add(self, place: Place) -> None:
        """Adds a file of duplicates."""
        documents, duplicates = place.tally
        self._n_files += 1
        self._documents += documents
        self._duplicates += duplicates

    def problems(self) -> Iterable[str]:
        """Yields what contradicts `duplicates.arrow`, where that is here."""
        path = self._output_dir / GROUPS_FILE
        if not self._n_files or not path.exists():
            return
        try:
            made = load_duplicates(path).made
        except ConfigError as error:
            yield str(error)
            return
        stated = (made["documents"], made["duplicates"])
        if stated != (self._documents, self._duplicates):
            own = f"its files have {self._documents:,} documents and {self._duplicates:,} duplicates"
            yield f"{own}, and {GROUPS_FILE} {stated[0]:,} and {stated[1]:,}; {AGAIN}"
        try:
            summary = orjson.loads((self._output_dir / SUMMARY_FILE).read_bytes())
            differing = [name for name, value in made.items() if summary.get(name) != value]
        except (OSError, ValueError, AttributeError) as error:
            yield f"{SUMMARY_FILE} cannot be read ({error}); {AGAIN}"
            return
        if differing:
            yield f"{SUMMARY_FILE} has another {differing[0]} than {GROUPS_FILE}; {AGAIN}"


def _is_kept(marks: "pq.ParquetFile") -> NDArray[np.bool_]:
    """Returns which documents are kept, bool (n,)."""
    found = [np.empty(0, bool)]
    for batch in marks.iter_batches(ROW_GROUP, columns=[KEPT_ROW]):
        found.append(batch[KEPT_ROW].is_null().to_numpy(zero_copy_only=False))
    return np.concatenate(found)


def _tables(marks: "pq.ParquetFile", n_rows: int) -> Iterator[tuple[int, Any]]:
    """Yields the first row, and a table of this and the next ones."""
    import pyarrow as pa

    start = 0
    for batch in marks.iter_batches(n_rows):
        yield start, pa.Table.from_batches([batch])
        start += len(batch)


FILES_OF_DUPLICATES = OutputKind(
    "files of duplicates",
    find_duplicates,
    read_duplicates,
    check_duplicates,
    made_from="embed",
    again=AGAIN,
    check_together=CorpusDuplicates,
    evidence=evidence_of,
)
