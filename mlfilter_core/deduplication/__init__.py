"""Embeddings to groups of duplicates: partitions, pairs, groups, the documents that are kept."""
