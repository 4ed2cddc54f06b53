"""The devices that the suite runs on: RETROGRADE_TEST_DEVICES names them, `test_gpu` sets it."""

from __future__ import annotations

import os

import pytest

from retrograde.runtime.protocol import Device
from tests.device.harness import device_named

DEVICES = os.environ.get("RETROGRADE_TEST_DEVICES", "numpy,standin").split(",")


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> Device:
    return device_named(request.param)
