"""The prepared table: on the disk, as a Dataset, and the order of an epoch's rows."""
