"""Checks one annotated file against its embeddings or, if these were removed, against its source."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

from mlfilter_core.annotating.annotated_format import SUFFIXES
from mlfilter_core.config.annotation import ANNOTATED_DIR
from mlfilter_core.config.clustering import CLUSTERS_DIR
from mlfilter_core.corpus.documents import RecordKeys
from mlfilter_core.corpus.lines import Line, OverlongLine, SourceReader
from mlfilter_core.corpus.own_outputs import PROVENANCE_FOLDER
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.corpus.sources import Source, open_source
from mlfilter_core.embedding_store.centroids import centroids_beside
from mlfilter_core.embedding_store.cluster_file import SUFFIX
from mlfilter_core.embedding_store.layout import (
    CHUNK_ROWS,
    CLUSTER_KEYS,
    DOCUMENT_ID,
    LABELS,
    N_TOKENS,
    SOURCE_LINE,
    SOURCE_OFFSET,
    TEXT_HASH,
    index_name,
)
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.embedding_store.source_documents import WHOLE_DOCUMENT
from mlfilter_core.errors import EmbeddingFileError
from mlfilter_core.files.identity import is_same_file
from mlfilter_core.verification.annotated_lines import AGAIN, ExpectedLine, check_annotated_lines
from mlfilter_core.verification.annotation_heads import UsedHeads
from mlfilter_core.verification.clusters_of_lines import clusters_of_lines
from mlfilter_core.verification.discrepancies import FileCheck, Findings, LineCounts, Place
from mlfilter_core.verification.embedding_files import REJECTED_DIR, check_counted, check_counts
from mlfilter_core.verification.output_kinds import Output, OutputKind, RelatedFiles, VerifyRequest, without_suffix
from mlfilter_core.verification.rejected_lines import read_rejected_lines
from mlfilter_core.verification.source_account import AGAIN as EMBED_AGAIN
from mlfilter_core.verification.source_account import ENCODER_REASONS, SourceAccount, find_source, schema_of
from mlfilter_core.verification.stated_facts import StatedFacts, reading, stated_lengths, stated_scores

NO_EMBEDDINGS = "against their embeddings, which are not in this folder"
NO_SOURCE = "against their sources: another tool made the embeddings"
NO_COPIES = "for what they copy from their sources, which are missing"
NO_CLUSTERS = "against their clusters, which are not in this folder"
NO_REJECTS = "against their rejected lines, which are not in this folder"
ANNOTATED_SUFFIXES = tuple(SUFFIXES.values())
PROVENANCE_DIR = f"{ANNOTATED_DIR}/{PROVENANCE_FOLDER}"


def provenance_of(relative: str) -> str:
    """Returns the place of an annotated file's provenance, relative to the output folder."""
    return f"{PROVENANCE_DIR}/{relative.removeprefix(f'{ANNOTATED_DIR}/')}.json"


def find_annotated(relative: str) -> Output | None:
    """Returns the annotated file that a file is or describes: provenance shows that a missing file was there."""
    if relative.startswith(f"{PROVENANCE_DIR}/"):
        name = relative.removeprefix(f"{PROVENANCE_DIR}/").removesuffix(".json")
    elif relative.startswith(f"{ANNOTATED_DIR}/") and relative.endswith(ANNOTATED_SUFFIXES):
        name = relative.removeprefix(f"{ANNOTATED_DIR}/")
    else:
        return None
    path = f"{ANNOTATED_DIR}/{name}"
    return Output(path, _name_of(path))


def _name_of(relative: str) -> str:
    return without_suffix(relative.removeprefix(f"{ANNOTATED_DIR}/"), ANNOTATED_SUFFIXES)


def evidence_of(relative: str) -> tuple[str, ...]:
    """Returns the files that `read_annotated` reads."""
    return relative, provenance_of(relative)


def read_annotated(relative: str, request: VerifyRequest) -> StatedFacts:
    """Returns what an annotated file states.

    Raises:
        UnreadableOutputError: The file or its provenance is missing, or the provenance is broken.
    """
    path, provenance = request.output_dir / relative, request.output_dir / provenance_of(relative)
    with reading(provenance):
        n_bytes = path.stat().st_size
        made = json.loads(provenance.read_bytes())
        statistics, source = made.get("statistics") or {}, made.get("source")
        return StatedFacts(
            n_bytes,
            int(made["documents"]),
            (source["path"], source["sha256"]) if source else None,
            made.get("counts") or {},
            f"{REJECTED_DIR}/{without_suffix(source['path'], SOURCE_SUFFIXES)}.jsonl" if source else None,
            {**made["embeddings"].get("request", {}), **(made.get("encoder") or {})},
            stated_lengths(statistics),
            stated_scores(statistics),
            dict(made["request"]["heads"]),
        )


def check_annotations(relative: str, request: VerifyRequest, related: RelatedFiles) -> FileCheck:
    """Checks one annotated file; never raises for what is wrong with it.

    Args:
        relative: The file, below the output folder; it may be missing where its provenance exists.
        request: Request of the verification.
        related: Candidates for its embeddings and its rejects file.
    """
    check = _Check(relative, request, related, Findings(request.output_dir / relative, AGAIN))
    with check.findings.collecting(), check.files:
        check.run()
    return check.result()


@dataclass
class _Check:
    """The check of one annotated file, with its findings so far; attributes as in `FileCheck`."""

    relative: str
    request: VerifyRequest
    related: RelatedFiles
    findings: Findings
    files: ExitStack = field(default_factory=ExitStack)
    readers: list[SourceReader | Source] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    counts: LineCounts | None = None
    annotated_lines: int = 0
    rejects: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Checks the file; the opened files belong to `files`."""
        provenance = self.request.output_dir / provenance_of(self.relative)
        try:
            made: dict[str, Any] = json.loads(provenance.read_bytes())
        except (OSError, ValueError) as error:
            self.findings.add("provenance", f"has no readable provenance ({error})")
            return
        if not self.findings.path.exists():
            self.findings.add("output", f"is missing, though {provenance} exists")
            return
        self.annotated_lines = made["documents"]
        self.settings = made["request"]
        self._check_metadata(made["output"])
        embeddings, others = self._find_embeddings(made)
        if embeddings is None and not others:
            self.not_checked.append(NO_EMBEDDINGS)
            if made["source"] is not None:
                self._check_against_source(made)
                return
            self.not_checked.append(NO_SOURCE)
        if others:
            self.findings.add("embeddings", f"was made from another version of {' or '.join(others)}")
        if embeddings is not None and embeddings.n_rows != made["documents"]:
            self.findings.add("rows", f"{_stated(made)}, and its embeddings have {embeddings.n_rows:,} rows")
        if embeddings is None:
            self._check_lines(made, None)
        else:
            copied, lines = self._copied(made, [key for key in made["request"]["output_keys"] if embeddings.find(key)])
            rows = zip(_stored_ids(embeddings), _offsets(embeddings) if copied else repeat(0), strict=False)
            self._check_lines(made, _expected(rows, lines, self._clusters(made)), copied)

    def result(self) -> FileCheck:
        """Returns the result, once the files are closed."""
        return FileCheck(
            self.relative,
            self.findings.problems(),
            tuple(self.not_checked),
            self.counts,
            self.annotated_lines,
            self.rejects,
            sum(reader.n_bytes for reader in self.readers),
            Place(ANNOTATED_DIR, _name_of(self.relative), self.settings),
        )

    def _check_metadata(self, recorded: Mapping[str, Any]) -> None:
        """Compares size and time of change; the content is compared once it is read."""
        is_same = is_same_file(self.findings.path, {**recorded, "sha256": None}, read_content=False)
        if is_same is False:
            self.findings.add("output", "changed since it was annotated: it has another size")
        elif is_same is None and not self.request.read_content:
            self.findings.add(
                "output", "was copied or changed since it was annotated", "check without --quick to compare the content"
            )

    def _find_embeddings(self, made: Mapping[str, Any]) -> tuple[EmbeddingFile | None, list[str]]:
        """Returns the embeddings that the file was made from; if there are none, the names of the wrong candidates."""
        others = []
        for name in self.related.outputs:
            try:
                file = EmbeddingFile(self.request.output_dir / name, made["request"]["group"])
            except (EmbeddingFileError, OSError):  # reported by the check of that file
                continue
            self.files.enter_context(file)
            if file.is_version(made["embeddings"], self.request.read_content) is not False:
                return file, []
            others.append(name)
        return None, others

    def _check_lines(
        self, made: Mapping[str, Any], expected: Iterator[ExpectedLine] | None, copied: Sequence[str] = ()
    ) -> None:
        if not self.request.read_content:
            return
        reader = self._open(self.findings.path)
        with self.findings.collecting():
            self.annotated_lines = check_annotated_lines(reader, made, expected, copied, self.findings)
            if self.annotated_lines != made["documents"]:
                self.findings.add("lines", f"{_stated(made)}, and has {self.annotated_lines:,} lines")
            if reader.sha256 != made["output"]["sha256"]:
                self.findings.add("output", "changed since it was annotated: it has another sha256")

    def _check_against_source(self, made: Mapping[str, Any]) -> None:
        counts = made["counts"]
        of_embedding = self.findings.with_fix(EMBED_AGAIN)
        self.counts = check_counts(counts, of_embedding)
        if self.counts.documents != made["documents"]:
            self.findings.add("documents", f"{_stated(made)}, and counts {self.counts.documents:,}")
        rejects = self._find_rejects(self.counts.rejected, of_embedding)
        source = find_source(made["source"], self.request, of_embedding)
        if source is None or not self.request.read_content:
            self._check_lines(made, None)
            return
        wanted = schema_of(made["embeddings"]["request"]).keys
        reader = self.files.enter_context(open_source(source, wanted, made["source"]["path"]))
        self.readers.append(reader)
        rejected = read_rejected_lines(self._open(rejects)) if rejects else None
        if not self.counts.rejected:
            rejected = rejected or iter(())
        account = SourceAccount(reader, made["source"], made["embeddings"]["request"], rejected, of_embedding)
        # Without the rejects file, lines that only the encoder rejected look like documents.
        unknown = Counter[str]()
        if rejected is None:
            unknown.update(
                {reason: n for reason, n in counts["rejected_by_reason"].items() if reason in ENCODER_REASONS}
            )
        rows = ((document.id.encode(), document.offset) for batch in account.documents() for document in batch)
        if unknown:
            self._check_lines(made, None)
        else:
            copied, lines = self._copied(made, _stored_names(made["embeddings"]["request"]))
            self._check_lines(made, _expected(rows, lines, self._clusters(made)), copied)
        for _ in rows:  # the account covers the whole source
            pass
        by_reason = account.rejected + unknown
        n_documents = account.n_documents - unknown.total()
        self.counts = LineCounts(reader.n_lines, n_documents, by_reason.total(), account.n_blank)
        check_counted(self.counts, by_reason, counts, of_embedding)

    def _copied(
        self, made: Mapping[str, Any], stored: Sequence[str]
    ) -> tuple[Sequence[str], Iterator[Line | OverlongLine]]:
        """Returns the output keys that are copied from the source, and its lines; none where they cannot be compared.

        Args:
            made: Provenance of the annotated file.
            stored: Names of what is stored with the embeddings.
        """
        if not self.request.read_content or made["source"] is None:
            return (), iter(())
        others = [*stored, *made["columns"], "doc_id"]  # the last is another name of the stored id
        others += CLUSTER_KEYS if "clusters" in made["request"] else ()
        keys = [key for key in made["request"]["output_keys"] if key not in others]
        path = Path(self.request.source_dir or made["source"]["folder"], made["source"]["path"])
        if not keys:
            return (), iter(())
        if not path.exists():
            self.not_checked.append(NO_COPIES)
            return (), iter(())
        wanted = None if WHOLE_DOCUMENT in keys else RecordKeys(optional=tuple(keys))
        source = open_source(path, wanted, made["source"]["path"])
        self.readers.append(self.files.enter_context(source))
        max_line_bytes = sys.maxsize if source.is_columnar else made["embeddings"]["request"]["max_line_bytes"]
        return keys, source.lines(max_line_bytes)

    def _clusters(self, made: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Returns the output keys of clusters that each line must have; none where they cannot be compared."""
        if not self.request.read_content or "clusters" not in made["request"]:
            return repeat({})
        path = self.request.output_dir / CLUSTERS_DIR / f"{_name_of(self.relative)}{SUFFIX}"
        if not path.exists():
            self.not_checked.append(NO_CLUSTERS)
            return repeat({})
        return clusters_of_lines(path, centroids_beside(self.request.output_dir / CLUSTERS_DIR), made, self.findings)

    def _find_rejects(self, n_rejected: int, findings: Findings) -> Path | None:
        self.rejects = next(iter(self.related.rejects), None)
        if self.rejects is not None:
            if not n_rejected:
                findings.add("rejects", f"it states no rejected lines, and {self.rejects} is present")
            return self.request.output_dir / self.rejects
        if n_rejected and self.related.has_unkept:
            findings.add("rejects", f"it states {n_rejected:,} rejected lines, which are missing")
        elif n_rejected:
            self.not_checked.append(NO_REJECTS)
        return None

    def _open(self, path: Path) -> SourceReader:
        reader = self.files.enter_context(SourceReader(path))
        self.readers.append(reader)
        return reader


def _stated(made: Mapping[str, Any]) -> str:
    return f"it states {made['documents']:,} documents"


def _stored_ids(file: EmbeddingFile) -> Iterator[bytes]:
    if file.find(DOCUMENT_ID):
        for rows in file.slices(CHUNK_ROWS):
            yield from file.array(DOCUMENT_ID, rows).tolist()


def _offsets(file: EmbeddingFile) -> Iterator[int]:
    for rows in file.slices(CHUNK_ROWS):
        yield from file.array(SOURCE_OFFSET, rows).tolist()


def _stored_names(request: Mapping[str, Any]) -> list[str]:
    """Returns the names of what is stored with embeddings that were made by a request."""
    index = map(index_name, request["index_keys"])
    return [DOCUMENT_ID, LABELS, SOURCE_LINE, SOURCE_OFFSET, N_TOKENS, TEXT_HASH, *index, *request["index_keys"]]


def _expected(
    rows: Iterable[tuple[bytes, int]], lines: Iterator[Line | OverlongLine], clusters: Iterator[Mapping[str, Any]]
) -> Iterator[ExpectedLine]:
    """Yields what the line of each document must contain, given its id and the offset of its source record.

    Args:
        rows: Id and offset of each document.
        lines: Lines of the source; without any, records are not compared.
        clusters: The output keys of its clusters.
    """
    for document_id, offset in rows:
        found = next((line for line in lines if line.offset == offset), None)
        yield ExpectedLine(document_id, found.content if isinstance(found, Line) else None, next(clusters, {}))


ANNOTATED_FILES = OutputKind(
    "annotated files",
    find_annotated,
    read_annotated,
    check_annotations,
    made_from="embed",
    again="annotate again",
    check_together=UsedHeads,
    evidence=evidence_of,
)
