"""From tables of probabilities to answers; knows tables only."""
