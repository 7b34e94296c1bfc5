"""Changing which model answers: versions, rollouts, comparisons, retraining."""
