"""What the source files of a job hold, as far as random pieces of them tell."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mlfilter_core.config.embedding import EmbeddingPipelineParameters
from mlfilter_core.embedding.wanted_keys import describe_absent, types_by_key, wanted_keys
from mlfilter_core.plan.blocks import BlockSample
from mlfilter_core.plan.estimates import HOW, Estimate, estimate_total
from mlfilter_core.plan.files_to_do import FilesToDo
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.plan import Section
from mlfilter_core.plan.sampled_documents import SampledDocuments, count_reasons, read_records
from mlfilter_core.plan.wording import estimated, in_bytes, in_share

if TYPE_CHECKING:
    from mlfilter_core.encoder.encoder import Encoder

N_SHOWN_KEYS = 12
N_TELLING_LINES = 20  # of a file, below which its share of rejected lines says little


def files_section(files: FilesToDo, sample: BlockSample) -> Section:
    """Returns which files there are."""
    n_bytes = sum(sample.bytes_by_file.values())
    unpacked = estimate_total(sample, lambda block: block.lines_bytes)
    facts = {
        "found": len(files.found),
        "finished": files.n_finished,
        "to_do": len(files.to_do),
        "compressed": sample.n_compressed,
        "bytes": n_bytes,
        "decompressed_bytes": unpacked.to_json(),
        "largest": max(sample.bytes_by_file, key=lambda name: sample.bytes_by_file[name], default=None),
        "empty": sum(size == 0 for size in sample.bytes_by_file.values()),
    }
    words = f"{files}: {in_bytes(n_bytes)}"
    if sample.n_compressed:
        words += f", decompressed {estimated(unpacked, in_bytes)}"
    if facts["empty"]:
        words += f"; {facts['empty']:,} are empty"
    return Section("files", facts, [("files", words)])


def keys_section(params: EmbeddingPipelineParameters, sample: BlockSample, findings: Findings) -> Section:
    """Returns the keys of the sampled documents; notes those that are wanted and absent."""
    records = read_records(sample.all_blocks)
    for absent in describe_absent(wanted_keys(params), records):
        findings.add_problem(f"{absent}; correct it")
    types = types_by_key(records)
    shown = [
        f"{key} {'/'.join(kinds)}"
        + ("" if sum(kinds.values()) == len(records) else f" in {in_share(sum(kinds.values()), len(records))}")
        for key, kinds in list(types.items())[:N_SHOWN_KEYS]
    ]
    more = f", and {len(types) - N_SHOWN_KEYS} more" if len(types) > N_SHOWN_KEYS else ""
    facts = {"records": len(records), "types": types}
    return Section("keys", facts, [("keys", ", ".join(shown) + more)])


def documents_section(
    sample: BlockSample,
    sampled: Sequence[SampledDocuments],
    encoder: "Encoder | None",
) -> Section:
    """Returns how many documents and tokens there are."""
    totals = totals_of(sample, sampled)
    reasons = count_reasons(sampled)
    n_lines = sum(documents.n_lines for documents in sampled)
    by_reason = {reason: _total(sample, sampled, partial(_count_reason, reason)).to_json() for reason in reasons}
    facts: dict[str, Any] = {
        "sampled_lines": n_lines,
        "sampled_files": len({documents.block.file.relative for documents in sampled}),
        "is_everything": sample.is_everything,
        "interval": HOW,
        **{name: total.to_json() for name, total in totals.items()},
        "rejected_by_reason": by_reason,
    }
    documents = totals["documents"]
    lines = [("documents", estimated(documents))]
    if encoder is not None:
        tokens, truncated = totals["tokens"], totals["truncated"]
        mean = tokens.value / documents.value if documents.value else 0
        lines.append(("tokens", f"{estimated(tokens)}; {mean:,.0f} for each document"))
        limit = encoder.max_length
        lines.append(("truncated", f"{in_share(truncated.value, documents.value)} of the documents, to {limit} tokens"))
    n_rejected = reasons.total()
    why = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
    lines.append(("rejected", f"{in_share(n_rejected, n_lines)} of the sampled lines" + (f": {why}" if why else "")))
    whole = "all that there are" if sample.is_everything else f"of {facts['sampled_files']:,} files"
    lines.append(("sample", f"{n_lines:,} lines, {whole}"))
    return Section("documents", facts, lines)


def check_rejects(
    params: EmbeddingPipelineParameters,
    sample: BlockSample,
    sampled: Sequence[SampledDocuments],
    findings: Findings,
) -> None:
    """Notes where lines are rejected that the job does not allow to be."""
    first = next((own.rejections[0] for own in sampled if own.rejections), None)
    if params.on_bad_record == "fail" and first is not None:
        n = sum(bool(own.rejections) for own in sampled)
        findings.add_problem(
            f"params.on_bad_record: fail: {n} of {len(sampled)} sampled pieces hold a line that is no document (the "
            f"first: {first.reason}: {first.detail}); mend the lines, or set it to reject"
        )
    by_file: dict[str, list[SampledDocuments]] = {}
    for own in sampled:
        by_file.setdefault(own.block.file.relative, []).append(own)
    failing = []
    for name, pieces in by_file.items():
        n_lines = sum(own.n_lines for own in pieces)
        n_rejected = sum(len(own.rejections) for own in pieces)
        is_whole = sum(own.block.n_bytes for own in pieces) >= sample.bytes_by_file[name] - 1
        share = n_rejected / max(n_lines, 1)
        # Of a file of which some was read, what speaks clearly counts: two standard errors.
        doubt = 0.0 if is_whole else 2 * math.sqrt(share * (1 - share) / max(n_lines, 1))
        if share - doubt > params.max_rejected_fraction and (is_whole or n_lines >= N_TELLING_LINES):
            reason = count_reasons(pieces).most_common(1)[0][0]
            failing.append(f"{name} ({n_rejected} of {n_lines} lines, most of them {reason})")
    if failing:
        shown = ", ".join(failing[:3]) + (", ..." if len(failing) > 3 else "")
        findings.add_problem(
            f"{len(failing)} of {len(by_file)} sampled files would fail with more rejected lines than "
            f"params.max_rejected_fraction, {params.max_rejected_fraction}: {shown}; check the keys, or raise it"
        )


def totals_of(sample: BlockSample, sampled: Sequence[SampledDocuments]) -> dict[str, Estimate]:
    """Returns the totals over all files of what sampled pieces hold."""
    return {
        "lines": _total(sample, sampled, lambda own: own.n_lines),
        "documents": _total(sample, sampled, lambda own: len(own.documents)),
        "rejected": _total(sample, sampled, lambda own: len(own.rejections)),
        "tokens": _total(sample, sampled, lambda own: sum(own.n_tokens)),
        "truncated": _total(sample, sampled, lambda own: own.n_truncated),
    }


def _total(
    sample: BlockSample, sampled: Sequence[SampledDocuments], count: Callable[[SampledDocuments], float]
) -> Estimate:
    by_block = {id(own.block): float(count(own)) for own in sampled}
    return estimate_total(sample, lambda block: by_block[id(block)])


def _count_reason(reason: str, sampled: SampledDocuments) -> int:
    return sum(rejection.reason == reason for rejection in sampled.rejections)
