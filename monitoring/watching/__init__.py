"""The parts of `python -m monitoring.watch`: its schedule, its pages, and when retraining is due."""
