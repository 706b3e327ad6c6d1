"""Console commands: one file each reads its config, calls, prints."""
