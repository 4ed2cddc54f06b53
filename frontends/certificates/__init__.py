"""Certificates: what a compiled program shows about itself, by comparison with what was traced."""

from __future__ import annotations

from retrograde.certificates.certificate import Certificate, Compared, Fault

__all__ = ["Certificate", "Compared", "Fault"]
