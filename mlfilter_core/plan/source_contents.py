"""What the source files of a job contain, as far as a sample shows."""

import math
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mlfilter_core.config.embedding import EmbeddingPipelineParameters
from mlfilter_core.corpus.documents import MISSING_LABEL, BadRecordError, parse_record
from mlfilter_core.embedding.wanted_keys import (
    LABEL_ADVICE,
    advice_on_rejects,
    describe_absent,
    types_by_key,
    wanted_keys,
)
from mlfilter_core.plan.blocks import BlockSample
from mlfilter_core.plan.corpus_sample import CorpusSample, Piece
from mlfilter_core.plan.estimates import METHOD, Estimate, estimate_total
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.plan import Section
from mlfilter_core.wording import rough_share, size

if TYPE_CHECKING:
    from mlfilter_core.encoder.encoder import Encoder

N_SHOWN_KEYS = 12
N_SHOWN_FILES = 3
MIN_TELLING_LINES = 20  # for a partly read file; with fewer, its share of rejected lines is too uncertain


def files_section(sample: CorpusSample) -> Section:
    """Returns the facts about the files."""
    files, blocks = sample.files, sample.blocks
    n_bytes = sum(blocks.bytes_by_file.values())
    decompressed = estimate_total(blocks, lambda block: block.lines_bytes)
    n_empty = sum(own_bytes == 0 for own_bytes in blocks.bytes_by_file.values())
    facts = {
        "found": len(files.found),
        "finished": files.n_finished,
        "to_do": len(files.to_do),
        "compressed": blocks.n_compressed,
        "bytes": n_bytes,
        "decompressed_bytes": decompressed.to_json(),
        "largest": max(blocks.bytes_by_file, key=blocks.bytes_by_file.__getitem__, default=None),
        "empty": n_empty,
    }
    words = f"{files}: {size(n_bytes)}"
    if blocks.n_compressed:
        words += f", decompressed {decompressed.words(size)}"
    if n_empty:
        words += f"; {n_empty:,} are empty"
    return Section("files", facts, [("files", words)])


def keys_section(params: EmbeddingPipelineParameters, sample: CorpusSample, findings: Findings) -> Section:
    """Returns the keys of the sampled documents; notes keys of the job that no document has."""
    records = _records(sample.blocks)
    for absent in describe_absent(wanted_keys(params), records):
        findings.add_problem(f"{absent}; correct it")
    types = types_by_key(records)
    shown = []
    for key, kinds in list(types.items())[:N_SHOWN_KEYS]:
        n = sum(kinds.values())
        shown.append(f"{key} {'/'.join(kinds)}" + (f" in {rough_share(n, len(records))}" if n < len(records) else ""))
    if len(types) > N_SHOWN_KEYS:
        shown.append(f"and {len(types) - N_SHOWN_KEYS} more")
    return Section("keys", {"records": len(records), "types": types}, [("keys", ", ".join(shown))])


def documents_section(sample: CorpusSample, encoder: "Encoder | None") -> Section:
    """Returns how many documents there are, and how many tokens where the encoder has counted them."""
    totals = {
        "lines": sample.total(lambda piece: piece.n_lines),
        "documents": sample.total(lambda piece: len(piece.documents)),
        "rejected": sample.total(lambda piece: len(piece.rejections)),
        "tokens": sample.total(lambda piece: piece.n_tokens),
        "truncated": sample.total(lambda piece: piece.n_truncated),
    }
    n_lines = sum(piece.n_lines for piece in sample.pieces)
    n_files = len({piece.block.file for piece in sample.pieces})
    facts: dict[str, Any] = {
        "sampled_lines": n_lines,
        "sampled_files": n_files,
        "is_everything": sample.blocks.is_everything,
        "interval": METHOD,
        **{name: total.to_json() for name, total in totals.items()},
        "rejected_by_reason": {reason: _rejected(sample, reason).to_json() for reason in sample.reasons},
    }
    documents = totals["documents"]
    lines = [("documents", documents.words())]
    if encoder is not None:
        tokens, truncated = totals["tokens"], totals["truncated"]
        mean = tokens.value / documents.value if documents.value else 0
        share = rough_share(truncated.value, documents.value)
        lines.append(("tokens", f"{tokens.words()}; {mean:,.0f} per document"))
        lines.append(("truncated", f"{share} of the documents, to {encoder.max_text_length} tokens"))
        if encoder.settings.chunks is not None:
            chunks = sum(piece.n_chunks for piece in sample.pieces)
            lines.append(("chunks", f"{chunks / max(1, len(sample.documents)):.1f} per document"))
    why = ", ".join(f"{n:,} {reason}" for reason, n in sample.reasons.most_common())
    rejected = f"{rough_share(sample.reasons.total(), n_lines)} of the sampled lines"
    lines.append(("rejected", f"{rejected}: {why}" if why else rejected))
    whole = "the whole corpus" if sample.blocks.is_everything else f"of {n_files:,} files"
    lines.append(("sample", f"{n_lines:,} lines, {whole}"))
    return Section("documents", facts, lines)


def check_rejects(params: EmbeddingPipelineParameters, sample: CorpusSample, findings: Findings) -> None:
    """Notes more rejected lines than the job allows."""
    first = next((piece.rejections[0] for piece in sample.pieces if piece.rejections), None)
    if params.on_bad_record == "fail" and first is not None:
        n = sum(bool(piece.rejections) for piece in sample.pieces)
        findings.add_problem(
            f"params.on_bad_record: fail: {n} of {len(sample.pieces)} sampled blocks contain a line that is not a "
            f"document (the first: {first.reason}: {first.detail}); fix the lines, or set on_bad_record: reject"
        )
    by_file: dict[str, list[Piece]] = {}
    for piece in sample.pieces:
        by_file.setdefault(piece.block.file.relative, []).append(piece)
    failing: list[str] = []
    why: Counter[str] = Counter()
    for name, pieces in by_file.items():
        n_lines = sum(piece.n_lines for piece in pieces)
        reasons = sum((piece.reasons for piece in pieces), Counter())
        is_whole = sum(piece.block.n_bytes for piece in pieces) >= sample.blocks.bytes_by_file[name] - 1
        share = reasons.total() / max(n_lines, 1)
        # A file that was read in part fails only where its share is two standard errors above the limit.
        doubt = 0.0 if is_whole else 2 * math.sqrt(share * (1 - share) / max(n_lines, 1))
        if share - doubt > params.max_rejected_fraction and (is_whole or n_lines >= MIN_TELLING_LINES):
            most = reasons.most_common(1)[0][0]
            why += reasons
            failing.append(f"{name} ({reasons.total()} of {n_lines} lines, most of them {most})")
    if failing:
        shown = ", ".join(failing[:N_SHOWN_FILES]) + (", ..." if len(failing) > N_SHOWN_FILES else "")
        findings.add_problem(
            f"{len(failing)} of {len(by_file)} sampled files would fail with more rejected lines than "
            f"params.max_rejected_fraction, {params.max_rejected_fraction}: {shown}; {advice_on_rejects(why)}"
        )
    elif n_unlabelled := sample.reasons[MISSING_LABEL]:
        n_lines = sum(piece.n_lines for piece in sample.pieces)
        findings.add_warning(
            f"{rough_share(n_unlabelled, n_lines)} of the sampled lines have no label and would be rejected, because "
            f"of save_labels: true. To keep them out of the job, or to embed them as well: {LABEL_ADVICE}"
        )


def _rejected(sample: CorpusSample, reason: str) -> Estimate:
    return sample.total(lambda piece: piece.reasons[reason])


def _records(blocks: BlockSample) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for block in blocks.all_blocks:
        for content in block.lines:
            with suppress(BadRecordError):
                records.append(parse_record(content))
    return records
