"""Devices, dtypes and matrix products."""
