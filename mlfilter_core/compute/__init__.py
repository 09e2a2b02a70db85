"""Devices, dtypes, worker processes and matrix products."""
