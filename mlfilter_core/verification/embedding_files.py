"""Checks one file of embeddings against its source and its rejected lines."""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mlfilter_core.config.annotation import ANNOTATED_DIR
from mlfilter_core.config.embedding import DEFAULT_EMBEDDING_DIR
from mlfilter_core.corpus.lines import SourceReader
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.corpus.sources import Source, open_source
from mlfilter_core.embedding_store.fingerprint import fingerprint
from mlfilter_core.embedding_store.layout import CHUNK_ROWS, EMBEDDING_SUFFIXES, EMBEDDINGS, N_TOKENS, Provenance
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import EmbeddingFileError
from mlfilter_core.tallies.histogram import WHOLE_NUMBERS, Histogram, histogram, write_histogram
from mlfilter_core.verification.discrepancies import FileCheck, Findings, LineCounts, Place
from mlfilter_core.verification.output_kinds import Output, OutputKind, RelatedFiles, VerifyRequest, without_suffix
from mlfilter_core.verification.rejected_lines import read_rejected_lines
from mlfilter_core.verification.row_comparison import RowComparison
from mlfilter_core.verification.source_account import AGAIN, SourceAccount, find_source, schema_of
from mlfilter_core.verification.stated_facts import StatedFacts, UnreadableOutputError, stated_lengths

REJECTED_DIR = "rejected"


def find_embeddings(relative: str) -> Output | None:
    """Returns the file of embeddings that a file is; their folder may have any name."""
    if not relative.endswith(EMBEDDING_SUFFIXES) or relative.startswith(f"{ANNOTATED_DIR}/"):
        return None
    return Output(relative, without_suffix(relative, EMBEDDING_SUFFIXES))


def evidence_of(relative: str) -> tuple[str, ...]:
    """Returns the files that `read_embeddings` reads."""
    return (relative,)


def read_embeddings(relative: str, request: VerifyRequest) -> StatedFacts:
    """Returns what a file of embeddings states.

    Raises:
        UnreadableOutputError: The file is broken, or is not a file of embeddings.
    """
    path = request.output_dir / relative
    try:
        with EmbeddingFile(path, request.group) as file:
            n_bytes, made = path.stat().st_size, file.provenance
            if made is None:
                return StatedFacts(n_bytes, file.n_rows, counts={"documents": file.n_rows})
            return StatedFacts(
                n_bytes,
                file.n_rows,
                (made.source["path"], made.source["sha256"]),
                made.counts,
                rejects_of(relative, made.source["path"]),
                {**made.request, **made.encoder},
                stated_lengths(made.statistics),
            )
    except (EmbeddingFileError, OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableOutputError(str(error)) from error


def check_embeddings(relative: str, request: VerifyRequest, related: RelatedFiles) -> FileCheck:
    """Checks one file of embeddings; never raises for what is wrong with it.

    Args:
        relative: The file, below the output folder.
        request: Request of the verification.
        related: Ignored: the file names its source, and its path determines that of its rejects.
    """
    path = request.output_dir / relative
    findings = Findings(path, AGAIN)
    with np.errstate(all="ignore"), findings.collecting(), EmbeddingFile(path, request.group) as file:
        if file.provenance is not None:
            return _check(relative, request, file, file.provenance, findings)
        findings.add("provenance", "has no provenance", f"{AGAIN}, or move it away")
    return FileCheck(relative, findings.problems())


def rejects_of(relative: str, source_path: str) -> str | None:
    """Returns the place of the rejects of a file of embeddings, relative to the output folder.

    Example: those of `v2/a/x.h5`, made from `a/x.jsonl.gz`, are `rejected/v2/a/x.jsonl`.

    Returns:
        None where the place of the file does not mirror the place of its source.
    """
    name, stem = without_suffix(relative, EMBEDDING_SUFFIXES), without_suffix(source_path, SOURCE_SUFFIXES)
    folder = f"/{name}".removesuffix(f"/{stem}")
    if folder == f"/{name}":
        return None
    own = "" if folder == f"/{DEFAULT_EMBEDDING_DIR}" else folder
    return f"{REJECTED_DIR}{own}/{stem}.jsonl"


def _place(relative: str, made: Provenance) -> Place:
    name, stem = (
        without_suffix(relative, EMBEDDING_SUFFIXES),
        without_suffix(made.source["path"], SOURCE_SUFFIXES),
    )
    settings = {**fingerprint(made), "embedding_dtype": made.request["embedding_dtype"]}
    return Place(f"/{name}".removesuffix(f"/{stem}").strip("/"), stem, settings)


def check_counts(counts: Mapping[str, Any], findings: Findings) -> LineCounts:
    """Checks that the stated counts add up, and returns them."""
    stated = LineCounts(*(counts[name] for name in LineCounts.__dataclass_fields__))
    if not stated.add_up:
        findings.add("stated", f"it states {stated}")
    if sum(counts["rejected_by_reason"].values()) != stated.rejected:
        findings.add("reasons", f"it states {stated.rejected} rejected lines, and other reasons for them")
    return stated


def check_counted(counted: LineCounts, by_reason: Counter[str], counts: Mapping[str, Any], findings: Findings) -> None:
    """Checks that the stated counts are those of the lines."""
    for name in LineCounts.__dataclass_fields__:
        if getattr(counted, name) != counts[name]:
            findings.add(name, f"it states {counts[name]:,} {name}, and there are {getattr(counted, name):,}")
    if counted.rejected == counts["rejected"] and by_reason != counts["rejected_by_reason"]:
        findings.add("reasons", f"it states other reasons than its rejected lines have: {dict(by_reason)}")


def _check(
    relative: str, request: VerifyRequest, file: EmbeddingFile, made: Provenance, findings: Findings
) -> FileCheck:
    counts, rejects, n_bytes, place = None, None, 0, None
    with findings.collecting(), ExitStack() as files:
        place = _place(relative, made)
        counts = check_counts(made.counts, findings)
        rejects = rejects_of(relative, made.source["path"])
        _check_layout(file, made, request.group, findings)
        rejects_file = _find_rejects(request.output_dir, rejects, counts, made, findings)
        source = find_source(made.source, request, findings)
        if request.read_content:
            n_bytes += file.path.stat().st_size
            with findings.collecting():
                file.check_content()
            with findings.collecting():
                _check_tokens(file, made, findings)
            keys, below = schema_of(made.request).keys, made.source["path"]
            reader = files.enter_context(open_source(source, keys, below)) if source else None
            rejects_reader = files.enter_context(SourceReader(rejects_file)) if rejects_file else None
            counts = _check_lines(file, made, reader, rejects_reader, findings)
            n_bytes += sum(opened.n_bytes for opened in (reader, rejects_reader) if opened)
    return FileCheck(relative, findings.problems(), (), counts, rejects=rejects, n_bytes=n_bytes, place=place)


def _check_layout(file: EmbeddingFile, made: Provenance, group: str, findings: Findings) -> None:
    n_stated = made.counts["documents"]
    if n_stated != file.n_rows:
        findings.add("rows", f"it states {n_stated:,} documents, and has {file.n_rows:,} rows")
    n_chunks = made.counts.get("chunks", 0)
    if file.has_chunks != bool(made.request.get("chunks")) or n_chunks != (file.n_chunks if file.has_chunks else 0):
        findings.add("chunks", f"it states {n_chunks:,} chunks, and has {file.n_chunks:,} embeddings")
    dtype = file.array(EMBEDDINGS, slice(0, 0)).dtype
    for name, stated, found in (
        ("embedding_dtype", made.request["embedding_dtype"], str(dtype)),
        ("dim", made.encoder["dim"], file.dim),
        ("group", made.request["group"], group),
    ):
        if stated != found:
            findings.add(name, f"it states the {name} {stated}, and has {found}")


def _find_rejects(
    output_dir: Path, rejects: str | None, counts: LineCounts, made: Provenance, findings: Findings
) -> Path | None:
    if rejects is None:
        findings.add("place", f"does not lie where the embeddings of {made.source['path']} belong", "move it back")
        return None
    path = output_dir / rejects
    if path.exists() != (counts.rejected > 0):
        found = "present" if path.exists() else "missing"
        findings.add("rejects", f"it states {counts.rejected:,} rejected lines, and {rejects} is {found}")
    return path if path.exists() else None


def _check_tokens(file: EmbeddingFile, made: Provenance, findings: Findings) -> None:
    n_tokens, lengths = 0, Histogram(WHOLE_NUMBERS)
    for rows in file.slices(CHUNK_ROWS):
        tokens = file.array(N_TOKENS, rows)
        n_tokens += int(tokens.sum(dtype=np.int64))
        lengths += histogram(tokens, WHOLE_NUMBERS)
        if tokens.min() < 1:
            findings.add("n_tokens", f"row {rows.start + int(np.argmin(tokens))}: n_tokens is {tokens.min()}")
    stated = made.counts["tokens"]
    if n_tokens != stated:
        findings.add("tokens", f"it states {stated:,} tokens, and n_tokens adds up to {n_tokens:,}")
    if made.statistics and made.statistics.get("document_tokens") != write_histogram(lengths):
        findings.add("document_tokens", "its histogram of tokens differs from n_tokens")


def _check_lines(
    file: EmbeddingFile,
    made: Provenance,
    source: Source | None,
    rejects: SourceReader | None,
    findings: Findings,
) -> LineCounts:
    """Counts the lines in the files; without the source, only the rejected lines."""
    rejected = read_rejected_lines(rejects) if rejects else None
    if source is None:
        by_reason = Counter(line.reason for line in rejected or ())
        counted = LineCounts(made.counts["lines"], file.n_rows, by_reason.total(), made.counts["blank"])
    else:
        # A missing rejects file was reported above; the source tells most of the rejected lines.
        known = rejected if rejected is not None or made.counts["rejected"] else iter(())
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


FILES_OF_EMBEDDINGS = OutputKind(
    "files of embeddings",
    find_embeddings,
    read_embeddings,
    check_embeddings,
    again="embed again",
    evidence=evidence_of,
)
