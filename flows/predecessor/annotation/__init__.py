"""The import paths of the predecessor, `ml_filter.annotation.*`; new code imports from `flows`."""
