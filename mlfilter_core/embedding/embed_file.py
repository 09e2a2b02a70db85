"""One source file to one HDF5 file of embeddings, with every line accounted for."""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlfilter_core.corpus.rejects import RejectsFile
from mlfilter_core.corpus.source_version import SourceVersion
from mlfilter_core.corpus.sources import open_source
from mlfilter_core.corpus.windows import FIRST_WINDOW, WINDOW_DOCUMENTS
from mlfilter_core.embedding.committed import CommittedRows
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.embed_request import MODEL_NAMES, EmbedRequest
from mlfilter_core.embedding.encoded_file import EncodedFile
from mlfilter_core.embedding.file_embedding import FileEmbedding, OpenFiles
from mlfilter_core.embedding.wanted_keys import advice_on_rejects
from mlfilter_core.embedding_store.layout import Provenance
from mlfilter_core.errors import SourceError
from mlfilter_core.files.publishing import publish
from mlfilter_core.files.task_files import WHOLE, TaskFile
from mlfilter_core.tallies.histogram import write_histogram
from mlfilter_core.versions import library_versions

if TYPE_CHECKING:
    from mlfilter_core.encoder.encoder import Encoder

# Facts about an encoder that may change between two runs of one file: they decide the last bits of an embedding at most
TUNED = ("max_batch_tokens", "why_max_batch_tokens", "is_compiled")
TUNED_IN_FLOAT32 = (*TUNED, "attention")

_log = logging.getLogger(__name__)


def embed_file(
    source: TaskFile,
    output: Path,
    rejects: Path,
    request: EmbedRequest,
    encoder: "Encoder",
    encoded: EncodedFile | None = None,
) -> EmbedReport:
    """Embeds one file or a part of it.

    `output` appears complete or not at all; an interrupted run resumes at its last commit.

    Args:
        source: The file or its part.
        output: The HDF5 file to make; replaced where it exists.
        rejects: File of the rejected lines; absent afterwards where there were none.
        request: Request of this run.
        encoder: The encoder of `request.model` and `request.encoder`.
        encoded: The rows of the file if it was encoded before; the report then has only the time of writing.

    Raises:
        SourceError: The source is unreadable, breaks off, changed while it was read, or has more bad
            lines than allowed.
        OSError: Reading or writing failed.
    """
    started = time.monotonic()
    version = SourceVersion(source.path)
    facts = {
        **made_by({**request.provenance(), **encoder.provenance()}),
        "window_documents": min(request.commit_documents, WINDOW_DOCUMENTS),
        "first_window": FIRST_WINDOW,
    }
    # In this order the rejects appear first: a finished output always has them beside it.
    with (
        open_source(source.path, request.schema.keys, source.relative) as reader,
        publish(output) as temporary,
        RejectsFile(rejects) as rejected,
        CommittedRows(output, facts, encoder.dim, request.rows_dtype, request.commit_documents) as committed,
    ):
        with request.open_writer(temporary, encoder.dim) as writer:
            embedding = FileEmbedding(source, request, encoder, OpenFiles(reader, writer, rejected, committed), encoded)
            waited = embedding.run(scratch=output.parent)
            status = version.check(reader, source.part)
            n_lines = reader.n_lines - reader.n_skipped
            check_rejected_fraction(source, n_lines, rejected.by_reason, rejected.first, request)
            counts = embedding.counts.summary(n_lines, rejected, request.encoder.chunks is not None)
            writer.finish(
                Provenance(
                    source={
                        **{"path": source.relative, "folder": source.url or str(source.folder)},
                        **{"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": reader.sha256},
                        **({"version": source.stored.version} if source.stored and source.stored.version else {}),
                        **({} if source.part == WHOLE else {"lines": [reader.n_skipped, reader.n_lines]}),
                    },
                    request=request.provenance(),
                    encoder={**encoder.provenance(), "max_batch_tokens": embedding.counts.max_batch_tokens},
                    counts=counts,
                    versions=library_versions(),
                    statistics={"document_tokens": write_histogram(embedding.counts.document_tokens)},
                )
            )
    committed.remove()
    report = EmbedReport(
        *(source.name, str(output), "embedded"),
        **counts,
        resumed=committed.n_taken,
        seconds=time.monotonic() - started,
        waited=waited,
        encoder=str(encoder),
    )
    _log_report(report, embedding.counts.new_tokens)
    return report


def made_by(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what two runs must share for the second to take the rows that the first embedded.

    Args:
        facts: Provenance of the request and of the encoder.
    """
    tuned = TUNED_IN_FLOAT32 if facts.get("compute_dtype") == "float32" else TUNED
    return {name: value for name, value in facts.items() if name not in (*MODEL_NAMES, *tuned)}


def check_rejected_fraction(
    source: TaskFile, n_lines: int, by_reason: Counter[str], first: str, request: EmbedRequest
) -> None:
    """Checks the number of rejected lines against the limit of the request.

    Args:
        source: The file.
        n_lines: Its number of lines.
        by_reason: Number of rejected lines by reason.
        first: Description of the first rejected line.
        request: The request.

    Raises:
        SourceError: There are more.
    """
    if by_reason.total() > request.max_rejected_fraction * n_lines:
        reasons = ", ".join(f"{n} {reason}" for reason, n in by_reason.most_common())
        raise SourceError(
            f"{source.path}: {by_reason.total()} of {n_lines} lines are rejected ({reasons}; first: {first}), more "
            f"than params.max_rejected_fraction, {request.max_rejected_fraction}; {advice_on_rejects(by_reason)}"
        )


def _log_report(report: EmbedReport, n_new_tokens: int) -> None:
    _log.info(
        "%s: %d documents, %d rejected, %d tokens in %.1f s (%.0f tokens/s)",
        *(report.source, report.documents, report.rejected, report.tokens),
        *(report.seconds, n_new_tokens / report.seconds),
    )
    if report.resumed:
        _log.info("%s: resumed after %d documents of an earlier run", report.source, report.resumed)
    if report.duplicate_ids:
        _log.warning("%s: %d documents have the id of an earlier one", report.source, report.duplicate_ids)
