"""Programs of any size run on all threads here, as large ones do elsewhere."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _on_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrograde.compiler.codegen.native_support.SMALL", 0)
