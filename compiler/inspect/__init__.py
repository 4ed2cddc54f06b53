"""Readers of graphs and plans for people: reports and drawings."""
