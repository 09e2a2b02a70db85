"""Texts to embeddings, with any Hugging Face encoder."""
