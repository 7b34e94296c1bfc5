"""The services that the benchmark compares with: short, and as their own users write them."""
