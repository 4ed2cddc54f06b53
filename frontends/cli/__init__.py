"""The `retrograde` command line."""
