"""Settings, errors, whole files and seeds: what every other room may use."""
