"""The runtime: turns a `Program` into numbers."""
