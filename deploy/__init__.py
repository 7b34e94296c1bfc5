"""What brings the service to where it runs: image, compose stack, Kubernetes, and how a release is made."""
