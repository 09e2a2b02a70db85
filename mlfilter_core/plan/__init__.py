"""What a job would do and need, found out before it starts."""
