"""What scores are worth: draws to one score, and predicted scores beside true ones."""
