"""The device suite on a GPU: skipped, with the reason, where CuPy finds none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from retrograde.compiler.errors import DeviceError
from retrograde.runtime.device import get_device

HERE = Path(__file__).parent


def test_the_suite_on_a_gpu() -> None:
    try:
        get_device("cupy")
    except DeviceError as error:
        pytest.skip(f"the device suite did not run on a GPU: {error}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE),
         "--deselect", f"{HERE}/test_gpu.py"],
        env=os.environ | {"RETROGRADE_TEST_DEVICES": "cupy"},
        cwd=HERE.parent.parent,
    )  # fmt: skip
    assert done.returncode == 0
