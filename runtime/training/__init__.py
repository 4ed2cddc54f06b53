"""The training loop and what it keeps: metrics and checkpoints."""
