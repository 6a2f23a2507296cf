"""What all test folders share: examples and surroundings that repeat; real data: where it is, whether it was used."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# The same code gets the same verdict, however busy the machine. New examples: pytest --hypothesis-profile=default
settings.register_profile("repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")

# What is printed is compared, and what a shell or a batch system has set for itself is not meant for the tests.
for _name in ("FORCE_COLOR", "TTY_COMPATIBLE", "PRUNEKIT_NO_PLUGINS", "RANK", "WORLD_SIZE"):
    os.environ.pop(_name, None)

ROOT = Path(__file__).parent
DATA = Path(os.environ.get("PRUNEKIT_DATA") or ROOT.parent / "shared" / "data")
_FIXTURES = {"lfw", "orl", "mnist"}
_RANKS = {"two_ranks", "three_ranks"}


def _there(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"real data: there is no {path}; set PRUNEKIT_DATA")
    return path


@pytest.fixture(scope="session")
def lfw() -> Path:
    """Return the folder of LFW faces; skip where it is absent."""
    return _there("lfw")


@pytest.fixture(scope="session")
def orl() -> Path:
    """Return the folder of ORL faces; skip where it is absent."""
    return _there("orl")


@pytest.fixture(scope="session")
def mnist() -> Path:
    """Return MNIST as an npz file; skip where it is absent."""
    return _there("mnist.npz")


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Mark the tests that use real data, and those of whole systems: in ``tests/system``, or on several ranks."""
    for item in items:
        if item.path.is_relative_to(ROOT / "tests" / "system") or _RANKS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.system)
        if _FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.real_data)


def _with_real_data(terminalreporter: Any, outcome: str) -> Iterator[Any]:
    # A module that is skipped as a whole has a report without keywords.
    return (report for report in terminalreporter.getreports(outcome) if "real_data" in getattr(report, "keywords", ()))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many tests ran on real data, so that a run without it cannot pass for one with it."""
    counts = {
        outcome: sum(1 for report in _with_real_data(terminalreporter, outcome) if report.when != "teardown")
        for outcome in ("passed", "failed", "skipped")
    }
    if any(counts.values()):
        told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
        terminalreporter.write_line(f"tests on real data in {DATA}: {told}")
