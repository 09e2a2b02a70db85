"""The Prefect API that a run reports to, and the states it leaves there."""
