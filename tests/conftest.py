"""Settings of the whole suite: every graph is verified after every pass, examples are the same at
every run (`make fuzz`: new ones and more), and golden files are rewritten with `--update-goldens`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

GOLDENS = Path(__file__).parent / "goldens"
PEERS = {"torch": "gradients and training runs beside PyTorch (make peers)"}

os.environ["RETROGRADE_VERIFY"] = "1"
# What a test compiles natively says so; the others need no compiler.
os.environ.setdefault("RETROGRADE_BACKEND", "numpy")
os.environ.setdefault(
    "RETROGRADE_CACHE_DIR", str(Path(__file__).parents[1] / ".retrograde_cache")
)

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("fuzz", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-goldens", action="store_true", help="rewrite tests/goldens from what is made now"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where "auto" means another device (`make test-native`), what is about the schedule, the plan
    or the bits of the NumPy device is left out."""
    if os.environ["RETROGRADE_BACKEND"] == "numpy":
        return
    left_out = [item for item in items if item.get_closest_marker("numpy_schedule")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    missing = [f"{name}: {use}" for name, use in PEERS.items() if not _is_there(name)]
    if missing:
        terminalreporter.section("peers that are not installed; their comparisons are skipped")
        for line in missing:
            terminalreporter.write_line(line)


def _is_there(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden("ir/attention.ir", text)` compares with tests/goldens/ir/attention.ir."""

    def check(name: str, text: str) -> None:
        path = GOLDENS / name
        if request.config.getoption("--update-goldens"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"tests/goldens/{name} is missing: run pytest --update-goldens"
        assert text == path.read_text(encoding="utf-8"), (
            f"tests/goldens/{name} differs: if that is meant, run pytest --update-goldens"
        )

    return check
