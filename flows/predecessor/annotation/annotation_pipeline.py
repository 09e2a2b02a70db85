"""`ml_filter.annotation.annotation_pipeline`, where the predecessor kept its function."""

from flows.commands.run import run_annotation_pipeline

__all__ = ["run_annotation_pipeline"]
