"""`make image` and `make image-tools`: what they build, and how."""
