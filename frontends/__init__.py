"""Retrograde: a symbolic graph compiler for sequence models; this is the namespace users import."""
