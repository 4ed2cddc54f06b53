"""Ready sequence models, built from the layers in `retrograde.nn`."""
