"""This service beside the ways in which people usually serve such a model: `python -m loadtest.benchmark`."""
