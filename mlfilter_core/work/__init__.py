"""What a job does with each of its files, and what it reports."""
