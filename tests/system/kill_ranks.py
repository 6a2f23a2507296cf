"""Kill all processes of multi-rank runs with SIGKILL, resume the runs, and compare their results.

    python tests/system/kill_ranks.py --kills 10 --seed 0 --ranks 2

The moments are drawn from a seed: a number of checkpoints, and a time after the last of them. ``kill_harness.py`` has
moments of every kind, for one process. Only wall times may differ afterwards.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kill_harness import RUNS, differences

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SHARDED = ["-o", "training.parallel=fsdp"]


class Trials:
    """Runs of one recipe, all in the folder "run", one after the other."""

    def __init__(self, options: list[str], ranks: int, log: Path) -> None:
        self._command = ["run", *options, "--device", "cpu", "--out", "run"]
        self._launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        self._log = log
        began, launcher = time.monotonic(), self._start(self._command)
        self._checkpoints = watch(launcher, sys.maxsize)
        self._each = (time.monotonic() - began) / self._checkpoints
        if launcher.wait() != 0:
            raise SystemExit(log.read_text())
        self.reference = Path("run").rename("reference")

    def kill(self, draw: random.Random) -> str:
        """Kill a run, resume it, and return its newest checkpoint; "" if it had finished before."""
        shutil.rmtree("run", ignore_errors=True)
        launcher = self._start(self._command)
        watch(launcher, draw.randrange(self._checkpoints))
        time.sleep(draw.uniform(0, self._each))
        end_all(launcher.pid)
        if launcher.wait() != -signal.SIGKILL:
            return ""
        begun = Path("run/config.toml").exists()
        left = max((path.name for path in Path("run").glob("checkpoints/stage-*")), default="no checkpoint")
        again = self._start(["run", "--resume", "run"] if begun else self._command)
        if again.wait() != 0:
            raise SystemExit(f"does not resume from {left}: {self._log.read_text()}")
        return left

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        whole = [*self._launcher, "-m", "prunekit", *command]
        with self._log.open("a") as log:
            return subprocess.Popen(whole, env=ENVIRONMENT, stdout=log, stderr=log)  # noqa: S603 - our own command


def watch(launcher: subprocess.Popen[bytes], number: int) -> int:
    """Wait until ``number`` checkpoints were seen, or until the run ends; return how many were seen."""
    seen: set[str] = set()
    while launcher.poll() is None and not (Path("run").exists() and len(seen) >= number):
        seen |= {path.name for path in Path("run/checkpoints").glob("stage-*")}
        time.sleep(0.005)
    return len(seen)


def end_all(launcher: int) -> None:
    """Kill a launcher and all processes it started; the ranks have sessions of their own."""
    family = [launcher]
    for process in family:
        with suppress(FileNotFoundError):
            family += map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
    for process in family:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def carry_out(kills: int, seed: int, ranks: int, options: list[str], report: Callable[[str], object]) -> bool:
    """Carry out the trials and return whether all were equal."""
    equal = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        trials = Trials(options, ranks, Path(folder) / "log")
        for number in range(kills):
            draw, left = random.Random(f"{seed} {number}"), ""
            while not left:
                left = trials.kill(draw)
            different = differences(Path("run"), trials.reference)
            equal += not different
            report(f"{number + 1:3} killed with {left:40} {f'DIFFERENT: {different}' if different else 'equal'}")
        os.chdir("/")
    report(f"{equal} of {kills} equal")
    return equal == kills


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--run", choices=tuple(RUNS), default="faces")
    parser.add_argument("--fsdp", action="store_true", help="shard the model")
    given = parser.parse_args()
    chosen = [*RUNS[given.run], *(SHARDED if given.fsdp else [])]
    sys.exit(not carry_out(given.kills, given.seed, given.ranks, chosen, lambda line: print(line, flush=True)))  # noqa: T201
