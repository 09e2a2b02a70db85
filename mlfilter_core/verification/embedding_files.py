"""One file of embeddings against its source and its rejected lines."""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlfilter_core.config.embedding import DEFAULT_EMBEDDING_DIR
from mlfilter_core.corpus.lines import SourceReader
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding_store.layout import CHUNK_ROWS, EMBEDDING_SUFFIXES, EMBEDDINGS, N_TOKENS, Provenance
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.tallies.histogram import WHOLE_NUMBERS, Histogram, histogram, write_histogram
from mlfilter_core.verification.discrepancies import FileCheck, Findings, LineCounts
from mlfilter_core.verification.rejected_lines import read_rejected_lines
from mlfilter_core.verification.row_comparison import RowComparison
from mlfilter_core.verification.source_account import AGAIN, SourceAccount, count_by_reason, find_source

REJECTED_DIR = "rejected"


@dataclass(frozen=True)
class VerifyRequest:
    """What is asked of every check.

    Attributes:
        output_dir: The folder that a job's outputs lie in.
        group: Name of the HDF5 group.
        source_dir: Where the sources lie now; None where they were embedded from.
        read_content: Whether to read the files; if not, what they state of themselves is all that is checked.
    """

    output_dir: Path
    group: str = "train"
    source_dir: Path | None = None
    read_content: bool = True


def check_embeddings(relative: str, request: VerifyRequest) -> FileCheck:
    """Checks one file of embeddings; never raises for what is wrong with it.

    Args:
        relative: The file, below the output folder.
        request: What is asked.
    """
    path = request.output_dir / relative
    findings = Findings(path)
    with np.errstate(all="ignore"), findings.collecting(), EmbeddingFile(path, request.group) as file:
        if file.provenance is None:
            findings.add("provenance", f"does not say what it was made of; {AGAIN}, or move it away")
        else:
            return _check(relative, request, file, file.provenance, findings)
    return FileCheck(relative, findings.problems())


def rejects_of(relative: str, source_path: str) -> str | None:
    """Returns the place of the rejects of a file of embeddings, relative to the output folder.

    Example: those of `v2/a/x.h5`, made from `a/x.jsonl.gz`, are `rejected/v2/a/x.jsonl`.

    Returns:
        None where the file's own place does not mirror that of its source.
    """
    name, stem = without_suffix(relative, EMBEDDING_SUFFIXES), without_suffix(source_path, SOURCE_SUFFIXES)
    folder = f"/{name}".removesuffix(f"/{stem}")
    if folder == f"/{name}":
        return None
    own = "" if folder == f"/{DEFAULT_EMBEDDING_DIR}" else folder
    return f"{REJECTED_DIR}{own}/{stem}.jsonl"


def without_suffix(name: str, suffixes: tuple[str, ...]) -> str:
    """Returns the name that all outputs of a file share."""
    return next((name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix)), name)


def check_counts(counts: Mapping[str, Any], findings: Findings) -> LineCounts:
    """Checks that what a file states adds up, and returns it."""
    stated = LineCounts(*(counts[name] for name in LineCounts.__dataclass_fields__))
    if not stated.add_up:
        findings.add("stated", f"it states {stated}; {AGAIN}")
    if sum(counts["rejected_by_reason"].values()) != stated.rejected:
        findings.add("reasons", f"it states {stated.rejected} rejected lines, and other reasons for them; {AGAIN}")
    return stated


def check_counted(counted: LineCounts, by_reason: Counter[str], counts: Mapping[str, Any], findings: Findings) -> None:
    """Checks that a file states the lines that were counted."""
    for name in LineCounts.__dataclass_fields__:
        if getattr(counted, name) != counts[name]:
            findings.add(name, f"it states {counts[name]:,} {name}, and there are {getattr(counted, name):,}; {AGAIN}")
    if counted.rejected == counts["rejected"] and by_reason != counts["rejected_by_reason"]:
        findings.add("reasons", f"it states other reasons than its rejected lines have: {dict(by_reason)}; {AGAIN}")


def _check(
    relative: str, request: VerifyRequest, file: EmbeddingFile, made: Provenance, findings: Findings
) -> FileCheck:
    counts, rejects, n_bytes = None, None, 0
    with findings.collecting():
        counts = check_counts(made.counts, findings)
        rejects = rejects_of(relative, made.source["path"])
        _check_layout(file, made, request.group, findings)
        rejects_file = _find_rejects(request.output_dir, rejects, counts, made, findings)
        source = find_source(made.source, request.source_dir, request.read_content, findings)
        if request.read_content:
            n_bytes += file.path.stat().st_size
            with findings.collecting():
                file.check_content()
            with findings.collecting():
                _check_tokens(file, made, findings)
            with ExitStack() as files:
                reader = files.enter_context(SourceReader(source)) if source else None
                rejects_reader = files.enter_context(SourceReader(rejects_file)) if rejects_file else None
                counts = _check_lines(file, made, reader, rejects_reader, findings)
                n_bytes += sum(opened.n_bytes for opened in (reader, rejects_reader) if opened)
    return FileCheck(relative, findings.problems(), (), counts, rejects=rejects, n_bytes=n_bytes)


def _check_layout(file: EmbeddingFile, made: Provenance, group: str, findings: Findings) -> None:
    n_stated = made.counts["documents"]
    if n_stated != file.n_rows:
        findings.add("rows", f"it states {n_stated:,} documents, and holds {file.n_rows:,} rows; {AGAIN}")
    dtype = file.array(EMBEDDINGS, slice(0, 0)).dtype
    for name, stated, found in (
        ("embedding_dtype", made.request["embedding_dtype"], str(dtype)),
        ("dim", made.encoder["dim"], file.dim),
        ("group", made.request["group"], group),
    ):
        if stated != found:
            findings.add(name, f"it states the {name} {stated}, and has {found}; {AGAIN}")


def _find_rejects(
    output_dir: Path, rejects: str | None, counts: LineCounts, made: Provenance, findings: Findings
) -> Path | None:
    if rejects is None:
        findings.add("place", f"does not lie where the embeddings of {made.source['path']} belong; move it back")
        return None
    path = output_dir / rejects
    is_there = path.exists()
    if is_there != (counts.rejected > 0):
        there = "there" if is_there else "missing"
        findings.add("rejects", f"it states {counts.rejected:,} rejected lines, and {rejects} is {there}; {AGAIN}")
    return path if is_there else None


def _check_tokens(file: EmbeddingFile, made: Provenance, findings: Findings) -> None:
    n_tokens, lengths = 0, Histogram(WHOLE_NUMBERS)
    for rows in file.slices(CHUNK_ROWS):
        tokens = file.array(N_TOKENS, rows)
        n_tokens += int(tokens.sum(dtype=np.int64))
        lengths += histogram(tokens, WHOLE_NUMBERS)
        if tokens.min() < 1:
            row = rows.start + int(np.argmin(tokens))
            findings.add("n_tokens", f"row {row}: n_tokens is {tokens.min()}; {AGAIN}")
    if n_tokens != made.counts["tokens"]:
        findings.add(
            "tokens", f"it states {made.counts['tokens']:,} tokens, and n_tokens adds up to {n_tokens:,}; {AGAIN}"
        )
    if made.statistics and made.statistics.get("document_tokens") != write_histogram(lengths):
        findings.add("document_tokens", f"its histogram of tokens is another than that of n_tokens; {AGAIN}")


def _check_lines(
    file: EmbeddingFile,
    made: Provenance,
    source: SourceReader | None,
    rejects: SourceReader | None,
    findings: Findings,
) -> LineCounts:
    """Counts the lines in the files; without the source, only the rejected ones."""
    rejected = read_rejected_lines(rejects) if rejects else None
    if source is None:
        by_reason = count_by_reason(rejected or ())
        counted = LineCounts(made.counts["lines"], file.n_rows, by_reason.total(), made.counts["blank"])
    else:
        # Where they are missing, which is said already, most of them can be told from the source.
        are_known = rejected is not None or not made.counts["rejected"]
        known = (rejected or iter(())) if are_known else None
        account = SourceAccount(source, made.source, made.request, known, findings)
        rows = RowComparison(file, made, findings)
        for documents in account.documents():
            rows.compare(documents)
        rows.check_complete()
        by_reason = account.rejected
        counted = LineCounts(source.n_lines, file.n_rows, by_reason.total(), account.n_blank)
    if rejected is not None or source is not None:
        check_counted(counted, by_reason, made.counts, findings)
    return counted
