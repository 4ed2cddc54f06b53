"""Graph to graph passes, one file each; every pass takes a valid graph and leaves a valid one."""
