"""Load tests: what the service does under load, and beside the alternatives."""
