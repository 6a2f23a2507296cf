"""A short run of the harness; ``python tests/system/kill_harness.py --kills 30`` is the long one."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_and_resumed_runs_end_with_the_bytes_of_undisturbed_runs():
    harness = Path(__file__).with_name("kill_harness.py")
    command = [sys.executable, str(harness), "--kills", "5", "--seed", "1", "--runs", "rigl", "rewinding"]
    # The command is the one above.
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 equal" in done.stdout
