"""From annotated files to a filtered corpus."""
