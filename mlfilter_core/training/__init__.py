"""From labels to heads."""
