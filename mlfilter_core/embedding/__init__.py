"""Source files to files of embeddings."""
