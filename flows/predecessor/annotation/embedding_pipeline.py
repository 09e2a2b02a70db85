"""`ml_filter.annotation.embedding_pipeline`, where the predecessor kept its function."""

from flows.commands.run import run_embedding_pipeline

__all__ = ["run_embedding_pipeline"]
