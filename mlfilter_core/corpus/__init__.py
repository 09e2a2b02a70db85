"""Source files as documents: names, lines, records, rejected lines, windows."""
