"""Shows the progress of a run: terminal, log, Prefect UI, Prometheus."""
