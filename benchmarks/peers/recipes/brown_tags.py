"""The model of `brown-tags` is that of `python-tags`."""

from __future__ import annotations

from benchmarks.peers.recipes.python_tags import Tagger

model = Tagger
