"""The work of mlfilter: documents to embeddings, embeddings to scores. Knows nothing about Prefect or Dask."""
