"""The fields of a job, each kind in a module of its own."""
