"""Embeddings, ids, scores and clusters to files of other tools: Parquet and NumPy."""
