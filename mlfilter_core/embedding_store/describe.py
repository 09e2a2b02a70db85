"""A file of embeddings in words, for a person."""

from pathlib import Path

from mlfilter_core.embedding_store.layout import DOCUMENT_ID
from mlfilter_core.embedding_store.reader import EmbeddingFile

N_SHOWN_IDS = 5


def describe(path: Path, group: str) -> str:
    """Returns what a file holds and where it comes from, after reading all its embeddings once.

    Raises:
        EmbeddingFileError: It is not a file of embeddings, or an embedding in it is not sound.
    """
    with EmbeddingFile(path, group) as file:
        file.check_content()
        lines = [
            f"{path}",
            f"group       {group}: {', '.join(sorted(file.names()))}",
            f"embeddings  {file.n_rows:,} x {file.dim}, all finite",
        ]
        if file.provenance is None:
            lines.append("provenance  none: made by another tool")
        else:
            made = file.provenance
            for title, facts in (
                ("counts", made.counts),
                ("source", made.source),
                ("encoder", {**made.request, **made.encoder}),  # None in the request is what the model then chose
                ("versions", made.versions),
            ):
                lines += [title, *(f"  {name:<23}{value}" for name, value in facts.items())]
        if file.find(DOCUMENT_ID):
            first = file.column(DOCUMENT_ID, slice(0, N_SHOWN_IDS))
            lines.append(f"first ids   {', '.join(map(str, first))}")
    return "\n".join(lines)
