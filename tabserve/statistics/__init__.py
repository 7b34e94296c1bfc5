"""Statistics that monitoring and lifecycle share: divergences, metrics of labelled rows, their intervals."""
