"""Live quality: how good the models are on rows whose label came."""
