"""Embeddings to clusters of similar documents, with names: sample, centroids, the cluster of each document."""
