"""Dask workers, on this machine or in Slurm jobs."""
