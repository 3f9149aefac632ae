"""The command `truefit`."""
