"""The course of a run: which files, in which tasks, with which report."""
