"""Embeddings to annotated files."""
