"""Without torch the comparisons with it are skipped, by name, and break nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PEERS = sorted((ROOT / "tests" / "peers").glob("test_*.py"))


@pytest.mark.skipif(not PEERS, reason="there are no comparisons yet")
def test_comparisons_are_skipped_without_torch() -> None:
    # None in sys.modules makes every import of it fail, as on a machine that lacks it.
    code = (
        "import sys, pytest; sys.modules['torch'] = None;"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'tests/peers']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    # pytest ends with 5 where every file was skipped while it was collected.
    assert done.returncode in (0, 5), done.stdout
    for file in PEERS:
        assert any(
            line.startswith("SKIPPED") and file.name in line and "make peers" in line
            for line in done.stdout.splitlines()
        ), done.stdout
