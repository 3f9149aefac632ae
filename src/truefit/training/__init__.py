"""All that decides how a model is trained, beside its table."""
