"""How many cores this process may use."""

import joblib


def usable_cores() -> int:
    """Returns how many cores this process may use, within its CPU affinity and its container's CPU limit."""
    return int(joblib.cpu_count())
