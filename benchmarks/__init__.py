"""Retrograde beside its peers: medians, ratios and high-water marks, never an absolute alone."""
