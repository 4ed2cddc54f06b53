"""The version of the package, which what it writes to files carries."""

__version__ = "0.1.0"
