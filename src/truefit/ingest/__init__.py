"""A file of the world becomes the prepared table; the synthetic data."""
