"""How good a model is: scores, the least-squares fit, figures, and a run's description."""
