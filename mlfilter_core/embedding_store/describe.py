"""A file of embeddings as text."""

from pathlib import Path

from mlfilter_core.embedding_store.layout import DOCUMENT_ID
from mlfilter_core.embedding_store.reader import EmbeddingFile

N_SHOWN_IDS = 5


def describe(path: Path, group: str) -> str:
    """Returns the contents and the provenance of a file, after reading and checking all its embeddings.

    Raises:
        EmbeddingFileError: It is not a file of embeddings, or contains an invalid embedding.
    """
    with EmbeddingFile(path, group) as file:
        file.check_content()
        lines = [
            f"{path}",
            f"group       {group}: {', '.join(sorted(file.names()))}",
            f"embeddings  {file.n_chunks:,} x {file.dim}, all finite"
            + (f", of {file.n_rows:,} documents" if file.has_chunks else ""),
        ]
        if file.provenance is None:
            lines.append("provenance  none: made by another tool")
        else:
            made = file.provenance
            for title, facts in (
                ("counts", made.counts),
                ("source", made.source),
                ("encoder", {**made.request, **made.encoder}),  # the model has chosen what is None in the request
                ("versions", made.versions),
            ):
                lines += [title, *(f"  {name:<23}{value}" for name, value in facts.items())]
        if file.find(DOCUMENT_ID):
            first = file.column(DOCUMENT_ID, slice(0, N_SHOWN_IDS))
            lines.append(f"first ids   {', '.join(map(str, first))}")
    return "\n".join(lines)
