"""Layers: modules are dataclass pytrees whose arrays are the parameters."""
