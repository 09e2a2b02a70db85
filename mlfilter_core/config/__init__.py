"""The fields of a job, with one module for each kind."""
