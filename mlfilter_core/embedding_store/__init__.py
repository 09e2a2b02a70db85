"""The HDF5 files of embeddings, and their joins to source documents."""
