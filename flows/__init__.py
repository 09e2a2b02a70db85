"""The Prefect flows of mlfilter: which files, on which workers, with which retries."""
