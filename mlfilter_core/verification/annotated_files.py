"""One annotated file against what it was made from: embeddings or, where these did not stay, their source."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlfilter_core.annotating.annotated_format import PROVENANCE_FOLDER
from mlfilter_core.config.annotation import ANNOTATED_DIR
from mlfilter_core.corpus.lines import SourceReader
from mlfilter_core.embedding_store.layout import CHUNK_ROWS, DOCUMENT_ID
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import EmbeddingFileError
from mlfilter_core.files.identity import is_same_file
from mlfilter_core.verification.annotated_lines import AGAIN, check_annotated_lines
from mlfilter_core.verification.discrepancies import FileCheck, Findings, LineCounts
from mlfilter_core.verification.embedding_files import VerifyRequest, check_counted, check_counts
from mlfilter_core.verification.rejected_lines import read_rejected_lines
from mlfilter_core.verification.source_account import ENCODER_REASONS, SourceAccount, find_source

NO_EMBEDDINGS = "against their embeddings, which are not in this folder"
NO_SOURCE = "against their sources: another tool made the embeddings"
NO_REJECTS = "against their rejected lines, which are not in this folder"


@dataclass(frozen=True)
class Surroundings:
    """Where what an annotated file was made from may lie, relative to the output folder.

    Attributes:
        embeddings: Files of embeddings with its name.
        rejects: Rejects files with its name that belong to no file of embeddings.
        holds_rejects: Whether embeddings were made here that did not stay, so that their rejects must be here.
    """

    embeddings: tuple[str, ...] = ()
    rejects: tuple[str, ...] = ()
    holds_rejects: bool = False


def provenance_of(relative: str) -> str:
    """Returns the place of what an annotated file says of itself, relative to the output folder."""
    return f"{ANNOTATED_DIR}/{PROVENANCE_FOLDER}/{relative.removeprefix(f'{ANNOTATED_DIR}/')}.json"


def check_annotations(relative: str, request: VerifyRequest, near: Surroundings) -> FileCheck:
    """Checks one annotated file; never raises for what is wrong with it.

    Args:
        relative: The file, below the output folder; it may be missing, with its provenance there.
        request: What is asked.
        near: Where what it was made from may lie.
    """
    findings = Findings(request.output_dir / relative)
    check = _Check(relative, request, near, findings)
    with findings.collecting(), ExitStack() as files:
        check.run(files)
    return FileCheck(
        relative,
        findings.problems(),
        tuple(check.not_checked),
        check.counts,
        check.n_lines,
        check.rejects,
        sum(reader.n_bytes for reader in check.readers),
    )


class _Check:
    """The course of one check, and what it finds besides problems; attributes as in `FileCheck`."""

    def __init__(self, relative: str, request: VerifyRequest, near: Surroundings, findings: Findings) -> None:
        self.not_checked: list[str] = []
        self.counts: LineCounts | None = None
        self.n_lines = 0
        self.rejects: str | None = None
        self.readers: list[SourceReader] = []
        self._path = request.output_dir / relative
        self._provenance = request.output_dir / provenance_of(relative)
        self._request = request
        self._near = near
        self._findings = findings

    def run(self, files: ExitStack) -> None:
        """Checks the file; leaves to `files` what is to be closed."""
        try:
            made: dict[str, Any] = json.loads(self._provenance.read_bytes())
        except (OSError, ValueError) as error:
            self._findings.add("provenance", f"does not say what it was made from ({error}); {AGAIN}")
            return
        if not self._path.exists():
            self._findings.add("output", f"is missing, though {self._provenance} is there; {AGAIN}")
            return
        self.n_lines = made["documents"]
        self._check_unchanged(made["output"])
        embeddings, are_others = self._find_embeddings(made, files)
        if embeddings is not None:
            if embeddings.n_rows != made["documents"]:
                stated = f"it states {made['documents']:,} documents"
                self._findings.add("rows", f"{stated}, and its embeddings have {embeddings.n_rows:,} rows; {AGAIN}")
            self._check_lines(made, _stored_ids(embeddings), files)
        elif are_others or made["source"] is None:
            if not are_others:
                self.not_checked += [NO_EMBEDDINGS, NO_SOURCE]
            self._check_lines(made, None, files)
        else:
            self.not_checked.append(NO_EMBEDDINGS)
            self._check_against_source(made, files)

    def _check_unchanged(self, recorded: Mapping[str, Any]) -> None:
        """Compares the metadata; the content is compared once it is read."""
        is_same = is_same_file(self._path, {**recorded, "sha256": None}, read_content=False)
        if is_same is False:
            self._findings.add("output", f"changed since it was annotated: it has another size; {AGAIN}")
        elif is_same is None and not self._request.read_content:
            self._findings.add(
                "output", "was copied or changed since it was annotated; only a check without --quick can tell"
            )

    def _find_embeddings(self, made: Mapping[str, Any], files: ExitStack) -> tuple[EmbeddingFile | None, bool]:
        """Returns the embeddings that it was made from, and whether there are only others of its name."""
        others = []
        for name in self._near.embeddings:
            try:
                file = EmbeddingFile(self._request.output_dir / name, made["request"]["group"])
            except (EmbeddingFileError, OSError):  # which is said where it is checked itself
                continue
            files.enter_context(file)
            if _were_made_from(made["embeddings"], file, self._request.read_content):
                return file, False
            others.append(name)
        if others:
            self._findings.add("embeddings", f"was made from another version of {' or '.join(others)}; {AGAIN}")
        return None, bool(others)

    def _check_lines(self, made: Mapping[str, Any], ids: Iterator[bytes] | None, files: ExitStack) -> None:
        if not self._request.read_content:
            return
        reader = self._open(self._path, files)
        with self._findings.collecting():
            self.n_lines = check_annotated_lines(reader, made, ids, self._findings)
            if self.n_lines != made["documents"]:
                stated = f"it states {made['documents']:,} documents"
                self._findings.add("lines", f"{stated}, and has {self.n_lines:,} lines; {AGAIN}")
            if reader.sha256 != made["output"]["sha256"]:
                self._findings.add("output", f"changed since it was annotated: it has another sha256; {AGAIN}")

    def _check_against_source(self, made: Mapping[str, Any], files: ExitStack) -> None:
        counts = made["counts"]
        self.counts = check_counts(counts, self._findings)
        if self.counts.documents != made["documents"]:
            self._findings.add("documents", f"it states {made['documents']:,} documents, and counts others; {AGAIN}")
        rejects = self._find_rejects(self.counts.rejected)
        source = find_source(made["source"], self._request.source_dir, self._request.read_content, self._findings)
        if source is None or not self._request.read_content:
            self._check_lines(made, None, files)
            return
        reader = self._open(source, files)
        rejected = read_rejected_lines(self._open(rejects, files)) if rejects else None
        if not self.counts.rejected:
            rejected = rejected or iter(())
        account = SourceAccount(reader, made["source"], made["embeddings"]["request"], rejected, self._findings)
        unknown = Counter(
            {reason: n for reason, n in counts["rejected_by_reason"].items() if reason in ENCODER_REASONS}
        )
        if rejected is not None:
            unknown.clear()
        ids = (document.id.encode() for documents in account.documents() for document in documents)
        self._check_lines(made, None if unknown else ids, files)
        for _ in ids:  # the account is of the whole source
            pass
        by_reason = account.rejected + unknown
        n_documents = account.n_documents - unknown.total()
        self.counts = LineCounts(reader.n_lines, n_documents, by_reason.total(), account.n_blank)
        check_counted(self.counts, by_reason, counts, self._findings)

    def _find_rejects(self, n_rejected: int) -> Path | None:
        self.rejects = next(iter(self._near.rejects), None)
        if self.rejects is not None:
            if not n_rejected:
                self._findings.add(
                    "rejects", f"it states no rejected lines, and {self.rejects} is there; embed it again"
                )
            return self._request.output_dir / self.rejects
        if n_rejected and self._near.holds_rejects:
            self._findings.add("rejects", f"it states {n_rejected:,} rejected lines, which are missing; embed it again")
        elif n_rejected:
            self.not_checked.append(NO_REJECTS)
        return None

    def _open(self, path: Path, files: ExitStack) -> SourceReader:
        self.readers.append(files.enter_context(SourceReader(path)))
        return self.readers[-1]


def _were_made_from(recorded: Mapping[str, Any], file: EmbeddingFile, read_content: bool) -> bool:
    if file.provenance is None:  # another tool's, which the whole file tells from others
        return "mtime_ns" in recorded and is_same_file(file.path, recorded, read_content) is not False
    made = {"source_sha256": file.provenance.source["sha256"], "request": file.provenance.request, "rows": file.n_rows}
    return all(recorded.get(name) == value for name, value in made.items())


def _stored_ids(file: EmbeddingFile) -> Iterator[bytes]:
    if file.find(DOCUMENT_ID):
        for rows in file.slices(CHUNK_ROWS):
            yield from file.array(DOCUMENT_ID, rows).tolist()
