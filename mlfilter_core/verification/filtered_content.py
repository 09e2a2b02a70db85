"""Compares the documents of one filtered file, and of its dropped ones, with its annotations and its source."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np

from mlfilter_core.config.filtering import SCORE_PREFIX
from mlfilter_core.corpus.lines import Line, OverlongLine
from mlfilter_core.corpus.source_files import JSONL_SUFFIXES
from mlfilter_core.corpus.sources import Source, open_source
from mlfilter_core.embedding_store.layout import EMBEDDING_SUFFIXES
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import EmbeddingFileError
from mlfilter_core.filtering.filter_request import PARQUET_SUFFIX
from mlfilter_core.filtering.kept_counts import KeptCounts
from mlfilter_core.filtering.ranks import tie_breaks
from mlfilter_core.verification.annotated_files import provenance_of
from mlfilter_core.verification.discrepancies import Findings
from mlfilter_core.verification.filtered_documents import (
    Scored,
    WrittenDocuments,
    group_of,
    scored_documents,
    source_lines,
)
from mlfilter_core.verification.output_kinds import VerifyRequest, without_suffix
from mlfilter_core.verification.source_account import find_source
from mlfilter_core.verification.stated_limits import StatedLimits

NO_EMBEDDINGS = "against their sources and groups: their embeddings are not in this folder"


@dataclass(frozen=True)
class WrittenFile:
    """A filtered or a dropped file.

    Attributes:
        place: Path, relative to the output folder.
        has_kept: Whether its documents were kept.
        n_documents: Number of documents that it should have.
        sha256: Recorded digest.
    """

    place: str
    has_kept: bool
    n_documents: int
    sha256: str


@dataclass
class FilteredContent:
    """The comparison of one filtered file and its dropped documents.

    Attributes:
        request: Request of the verification.
        made: Provenance of the filtered file.
        limits: Its limits, which count the documents.
        written: The files.
        findings: Collects the problems.
        files: Closes the opened files.
        not_checked: Contents that could not be compared.
    """

    request: VerifyRequest
    made: Mapping[str, Any]
    limits: StatedLimits
    written: Sequence[WrittenFile]
    findings: Findings
    files: ExitStack
    not_checked: list[str] = field(default_factory=list)
    _readers: list[Source] = field(default_factory=list)

    @property
    def n_bytes(self) -> int:
        return sum(reader.n_bytes for reader in self._readers)

    def check_against(self, annotated: Path, related: Sequence[str]) -> bool:
        """Checks that each annotated document is where its scores put it, as it was, and nowhere else.

        Args:
            annotated: The annotated file.
            related: Outputs with the same name, relative to the output folder.

        Returns:
            Whether that was possible; if not, nothing has been compared.
        """
        annotation = self._annotation(annotated)
        embeddings: EmbeddingFile | None = None
        sources: Iterator[Line | OverlongLine | None] = repeat(None)
        if self.made["request"]["whole_documents"]:
            embeddings = self._find_embeddings(annotation, related)
            if embeddings is None:
                self.not_checked.append(NO_EMBEDDINGS)
                return False
            source = self._find_source(embeddings)
            if source is None:
                return False
            sources = source_lines(self._open(source, self._path_with_columns(embeddings)), embeddings)
        self._compare(annotated, annotation, embeddings, sources)
        return True

    def check_alone(self) -> None:
        """Checks the documents by their own scores, which the limits must keep or drop."""
        per = self.made["request"]["per"]
        for file in self.written:
            reader, documents = self._open_written(file)
            for number, record in documents.records():
                group = group_of(record, per)
                is_known = not self.limits.breaks_ties and (per is None or group in self.made["groups"])
                if is_known and self.limits.are_reached(record, group, 0, 0) != file.has_kept:
                    what = "is below the limits, and was kept" if file.has_kept else "reaches them, and was dropped"
                    self.findings.add("limits", f"{file.place}, line {number}: the document {what}")
            documents.check_complete(file.n_documents)
            self._check_digest(file, reader)

    def _compare(
        self,
        annotated: Path,
        annotation: Mapping[str, Any],
        embeddings: EmbeddingFile | None,
        sources: Iterator[Line | OverlongLine | None],
    ) -> None:
        written = {file.has_kept: (file, *self._open_written(file)) for file in self.written}
        lines = self._open(annotated)
        groups: defaultdict[str, KeptCounts] = defaultdict(KeptCounts)
        n_expected = Counter[bool]()
        for scored, source, tie_break in zip(
            scored_documents(lines, self.made["request"]["per"], embeddings), sources, self._tie_breaks(), strict=False
        ):
            is_kept = self.limits.are_reached(scored.record, scored.group, tie_break, scored.tokens)
            groups[scored.group] += KeptCounts(1, int(is_kept), scored.tokens, scored.tokens if is_kept else 0)
            n_expected[is_kept] += 1
            if is_kept in written:
                columns = annotation.get("columns") or self._score_fields(scored)
                written[is_kept][2].compare(scored, source, columns)
        self._check_counts(groups)
        for is_kept, (file, reader, documents) in written.items():
            documents.check_complete(n_expected[is_kept])
            self._check_digest(file, reader)

    def _tie_breaks(self) -> Iterator[int]:
        if not self.limits.breaks_ties:
            return repeat(0)
        report = self.made["report"]
        of_documents = tie_breaks(without_suffix(report["annotated"], JSONL_SUFFIXES), np.arange(report["documents"]))
        return chain(of_documents.tolist(), repeat(0))  # surplus documents are counted

    def _check_counts(self, groups: Mapping[str, KeptCounts]) -> None:
        """Compares the stated counts with those of the documents."""
        has_groups = self.made["request"]["per"] is not None
        found = {
            **asdict(sum(groups.values(), KeptCounts())),
            "without_score": self.limits.without_score,
            "reached": {limit.name: self.limits.reached[limit.name] for limit in self.limits.limits},
            "by_group": {group: asdict(counts) for group, counts in groups.items()} if has_groups else {},
        }
        if "score_sums" in self.made["report"]:  # not of an earlier release
            found["score_sums"] = self.limits.score_sums(groups) if has_groups else {}
        for name, value in found.items():
            stated = self.made["report"][name]
            if stated != value:
                if isinstance(stated, Mapping) and isinstance(value, Mapping):  # not thousands of groups
                    differing = [key for key in {**stated, **value} if stated.get(key) != value.get(key)][:1]
                    stated, value = ({key: of.get(key) for key in differing} for of in (stated, value))
                self.findings.add(f"stated {name}", f"it states {name} {stated}, and there are {value}")

    def _score_fields(self, scored: Scored) -> list[str]:
        names = (name for limit in self.limits.limits for name in (limit.name, f"{SCORE_PREFIX}{limit.name}"))
        return [name for name in names if name in scored.record]

    def _annotation(self, annotated: Path) -> Mapping[str, Any]:
        """Returns the provenance of the annotated file; empty for one of another tool."""
        relative = annotated.relative_to(self.request.output_dir).as_posix()
        try:
            made: dict[str, Any] = json.loads((self.request.output_dir / provenance_of(relative)).read_bytes())
        except (OSError, ValueError):  # the check of that file reports what is broken
            return {}
        return made

    def _find_embeddings(self, annotation: Mapping[str, Any], related: Sequence[str]) -> EmbeddingFile | None:
        for name in related:
            if not name.endswith(EMBEDDING_SUFFIXES):
                continue
            try:
                file = EmbeddingFile(self.request.output_dir / name, self.request.group)
            except (EmbeddingFileError, OSError):  # the check of that file reports it
                continue
            self.files.enter_context(file)
            if not annotation or file.identity() == annotation["embeddings"]:
                return file
        return None

    def _find_source(self, embeddings: EmbeddingFile) -> Path | None:
        if embeddings.provenance is None:
            self.findings.add("source", f"{embeddings.path} does not name the source of the documents")
            return None
        return find_source(embeddings.provenance.source, self.request, self.findings)

    def _path_with_columns(self, embeddings: EmbeddingFile) -> str:
        """Returns the source's path, for its partition keys, which a written Parquet file has in its own path."""
        is_parquet = any(file.place.endswith(PARQUET_SUFFIX) for file in self.written)
        return "" if is_parquet or embeddings.provenance is None else str(embeddings.provenance.source["path"])

    def _check_digest(self, file: WrittenFile, reader: Source) -> None:
        if reader.sha256 != file.sha256:
            self.findings.add(f"sha256 of {file.place}", f"{file.place} changed since it was written: another sha256")

    def _open_written(self, file: WrittenFile) -> tuple[Source, WrittenDocuments]:
        reader = self._open(self.request.output_dir / file.place)
        return reader, WrittenDocuments(reader, self.findings, file.place.endswith(PARQUET_SUFFIX), file.place)

    def _open(self, path: Path, relative: str = "") -> Source:
        reader = self.files.enter_context(open_source(path, None, relative))
        self._readers.append(reader)
        return reader
