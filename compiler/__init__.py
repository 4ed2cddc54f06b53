"""The compiler: turns a `Graph` into a `Program`."""
