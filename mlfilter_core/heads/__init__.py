"""Checkpoints to heads, embeddings to scores."""
