"""What brings the service to where it runs: README.md in this folder."""
