"""The models: their layers, a model on the disk, rows to predictions."""
