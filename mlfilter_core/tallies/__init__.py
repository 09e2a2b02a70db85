"""Statistics that add up over files: counts with examples, histograms, score statistics."""
