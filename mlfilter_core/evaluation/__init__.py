"""The evaluation of scores: draws are aggregated to one score, predicted scores are compared with true ones."""
