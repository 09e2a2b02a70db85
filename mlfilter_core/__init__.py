"""The core of mlfilter: documents to embeddings, embeddings to scores. Knows nothing about Prefect or Dask.

What a notebook needs is here, and documented in `mlfilter_core.notebook`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlfilter_core.notebook import (
        embed_texts,
        load_encoder,
        load_heads,
        load_job,
        open_embeddings,
        run_in_process,
        score_embeddings,
    )

__all__ = [
    "embed_texts",
    "load_encoder",
    "load_heads",
    "load_job",
    "open_embeddings",
    "run_in_process",
    "score_embeddings",
]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported when it is used: `ml_filter --help` needs none of it
        return getattr(importlib.import_module("mlfilter_core.notebook"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
