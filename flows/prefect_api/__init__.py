"""The Prefect API that a run reports to, and the states that it leaves there."""
