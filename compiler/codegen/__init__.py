"""Code generation: turns a planned graph into the sources that a device runs."""
