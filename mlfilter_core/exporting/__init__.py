"""Embeddings, ids and scores to files of other tools: Parquet and NumPy."""
