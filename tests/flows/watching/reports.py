"""Reports of embedded files, as a run hears them."""

from mlfilter_core.embedding.embed_report import EmbedReport

WAITED = {"reading": 5.0, "encoding": 1.0}


def report(name: str, documents: int = 10) -> EmbedReport:
    counts = {"lines": documents + 1, "documents": documents, "rejected": 1, "blank": 0, "truncated": 0}
    return EmbedReport(
        name, f"{name}.h5", "embedded", **counts, duplicate_ids=0, tokens=100, out_of_memory=2, waited=WAITED
    )
