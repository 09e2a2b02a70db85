"""Embeddings, ids, scores, clusters and duplicates to files of other tools: Parquet and NumPy."""
