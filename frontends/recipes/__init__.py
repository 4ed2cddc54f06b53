"""Recipes of whole tasks: data sets, models, losses, and what tells how good the result is."""
