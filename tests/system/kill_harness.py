"""Kill runs with SIGKILL at moments drawn from a seed, resume them, and compare their results with undisturbed runs.

    python tests/system/kill_harness.py --kills 30 --seed 0

Every run is the command line in a forked process. Two thirds of the kills are counted: the process sends itself
SIGKILL at a drawn function call within a phase (training, statistics, a checkpoint ...); the phase "checkpoint file"
has only the calls that open, write, sync and rename the file. The other kills come from outside: after a drawn time, or
as soon as a checkpoint is being written. Every third run is killed a second time while it resumes. Only wall times may
differ afterwards.
"""

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import safe_open

from prunekit.cli import main as prunekit
from prunekit.files.atomic import write_atomically
from prunekit.pruning.update import choose_masks
from prunekit.reporting.metric_log import MetricLog
from prunekit.runs import folder as run_folder
from prunekit.runs import opening, run_store
from prunekit.runs.preparation import prepare
from prunekit.runs.stages import evaluation
from prunekit.runs.training.loop import Loop

TIMES = {"seconds", "stage_began", "digest"}
"""Fields of the metric log and of checkpoints that hold wall time, and a checkpoint's digest, which covers them."""

PHASES: dict[Any, str] = {
    prepare.__code__: "preparing",
    run_folder.create_run_folder.__wrapped__.__code__: "beginning",
    opening.describe.__wrapped__.__code__: "beginning",
    run_store.take_given.__code__: "given files",
    run_store.restore.__code__: "resuming",
    MetricLog.prunekit_run_started.__code__: "resuming",
    Loop.steps.__code__: "training",
    choose_masks.__code__: "statistics",
    run_store.save_progress.__code__: "checkpoint",
    write_atomically.__code__: "checkpoint file",  # within a checkpoint; elsewhere it counts as part of the outer phase
    run_store.keep_weights.__code__: "kept weights",
    run_store.save_results.__code__: "results",
    evaluation.evaluate.__code__: "evaluation",
}
# How often a phase is drawn, in the order of the trials: few kills cover the most important phases.
DRAWN = ("checkpoint file", "training", "statistics", "checkpoint", "results", "checkpoint file", "training",
         "kept weights", "statistics", "checkpoint file", "given files", "training", "evaluation", "between",
         "checkpoint", "statistics", "checkpoint file", "training", "beginning", "statistics")  # fmt: skip

OUTSIDE = ("at a file", "by the clock")

IMAGES = ["--task", "images", "-o", "task.calibration=100", "-o", "task.batch_size=50"]
FACES = ["-o", "task.width=1/32", "-o", "task.feature=16", "-o", "task.batch_people=6", "-o", "task.batch_images=2"]
RUNS = {
    # Dropout, batch normalisation, momentum, accumulation, statistics; layer after layer.
    "faces": [*FACES, "--criterion", "correlation", "--structure", "f=1/4 5b=1/4", "--keep", "3", "-o",
              "training.budget=7 steps", "-o", "training.retraining=5 steps", "-o", "training.checkpoint_every=2",
              "-o", "training.accumulate=2"],
    # Data workers, AdamW, growth by gradients.
    "rigl": [*IMAGES, "--schedule", "rigl", "--criterion", "magnitude", "--density", "0.2", "-o",
             "task.optimizer=adamw", "-o", "task.shift=1", "-o", "schedule.updates=5", "-o",
             "training.budget=18 steps", "-o", "training.checkpoint_every=5", "-o", "training.workers=2", "-o",
             "training.accumulate=2"],
    # Rewinding to the weights of an early step.
    "rewinding": [*IMAGES, "--schedule", "iterative", "-o", "schedule.rounds=2", "-o", "schedule.rewind=step", "-o",
                  "schedule.step=4", "--criterion", "correlation", "--density", "0.3", "-o", "training.budget=12 steps",
                  "-o", "training.retraining=9 steps", "-o", "training.checkpoint_every=4", "--keep", "1"],
    # Sums over training steps, in half precision.
    "movement": ["--task", "prunekit.testing:ToyTask", "--schedule", "gradual", "--criterion", "movement", "-o",
                 "training.budget=24 steps", "-o", "training.checkpoint_every=7", "--precision", "bf16",
                 "--sparse-model"],
    # Given masks and weights.
    "given": ["--task", "prunekit.testing:ToyTask", "--criterion", "correlation", "--structure", "hidden=1/8",
              "--masks", "given/masks.safetensors", "--weights", "given/model.safetensors", "-o",
              "training.budget=12 steps", "-o", "training.retraining=12 steps", "-o", "training.checkpoint_every=3"],
}  # fmt: skip
GIVEN = ["--task", "prunekit.testing:ToyTask", "--criterion", "magnitude", "-o", "training.budget=5 steps", "-o",
         "training.retraining=5 steps"]  # fmt: skip


class Clockwork:
    """Counts the calls of a process by phase, and kills it at a chosen one."""

    def __init__(self, shown: mmap.mmap, phase: str | None, number: int) -> None:
        self.counts: Counter[str] = Counter()
        self._shown, self._target, self._number = shown, phase, number
        self._phases = ["between"]

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if frame.f_code in PHASES and event in {"call", "return"}:
            self._move(PHASES[frame.f_code], event)
        phase = self._phases[-1]
        self.counts[phase] += 1
        if phase == self._target and self.counts[phase] == self._number:
            os.kill(os.getpid(), signal.SIGKILL)

    def _move(self, phase: str, event: str) -> None:
        if event == "return":
            self._phases.pop()
        else:
            outer = self._phases[-1]
            part = outer == "given files" or (phase == "checkpoint file" and outer != "checkpoint")
            self._phases.append(outer if part else phase)
        self._shown[:] = self._phases[-1].encode().ljust(len(self._shown))


def start(arguments: list[str], log: Path, shown: mmap.mmap, phase: str | None = None, number: int = 0) -> int:
    """Fork a process that runs a command line of prunekit, and return its process id."""
    sys.stdout.flush()
    shown[:] = b"between".ljust(len(shown))
    child = os.fork()
    if child:
        return child
    code = 70  # the harness itself failed
    try:
        os.setsid()
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        clockwork = Clockwork(shown, phase, number)
        own = os.getpid()
        sys.setprofile(lambda *event: clockwork(*event) if os.getpid() == own else sys.setprofile(None))
        code = prunekit(arguments)
        sys.setprofile(None)
        log.with_suffix(".json").write_text(json.dumps({"counts": clockwork.counts, "modules": list(sys.modules)}))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end_of(child: int) -> int:
    """Wait for a process and return its exit code; for a killed process, the negative number of the signal."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # data workers of the process; they would end by themselves
    return code


def warm_up(arguments: list[str], log: Path) -> None:
    """Run a command in a separate process, then import the same modules here, so that no trial waits for them."""
    assert end_of(start(arguments, log, mmap.mmap(-1, 16))) == 0, log.read_text()
    for module in json.loads(log.with_suffix(".json").read_text())["modules"]:
        with suppress(Exception):  # some modules can only be imported by their packages
            import_module(module)


class Trials:
    """Runs of one recipe, all in the same folder, one after the other."""

    def __init__(self, name: str, place: Path) -> None:
        self.name, self.folder, self.reference = name, place / "run", place / f"reference-{name}"
        self._log, self._shown = place / f"{name}.log", mmap.mmap(-1, 16)
        self._command = ["run", *RUNS[name], "--device", "cpu", "--out", "run"]
        warm_up(["plan", *RUNS[name]], self._log)
        began = time.monotonic()
        assert end_of(start(self._command, self._log, self._shown)) == 0, self._log.read_text()
        self._took = time.monotonic() - began
        self.counts: dict[str, int] = json.loads(self._log.with_suffix(".json").read_text())["counts"]
        self.folder.rename(self.reference)

    def kill(self, draw: random.Random, how: str, *, again: bool) -> list[str]:
        """Kill a run, resume it until it is finished, and return where the kills landed.

        Args:
            draw: decides the moments.
            how: where to kill by count, or one of ``OUTSIDE``.
            again: whether to kill it once more while it resumes.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        landed = [self._killed(self._command, draw, how)]
        if again:
            second = draw.choice(["resuming", "checkpoint file", "training"])
            landed.append(self._killed(self._way_on(), draw, second))
        for _ in range(len(landed) + 1):
            code = end_of(start(self._way_on(), self._log, self._shown))
            if code == 0:
                return [where for where in landed if where]
        raise SystemExit(f"{self.name} does not resume after {landed}: {self._log.read_text()}")

    def _killed(self, command: list[str], draw: random.Random, how: str) -> str:
        if how in OUTSIDE:
            child = start(command, self._log, self._shown)
            if how == "by the clock":
                time.sleep(draw.uniform(0.2, 1) * self._took)  # earlier it only imports
            else:
                self._await_file(child, draw.randint(1, 6))
            os.kill(child, signal.SIGKILL)
        else:
            child = start(command, self._log, self._shown, how, draw.randint(1, self.counts.get(how, 300)))
        code = end_of(child)
        # A resumed run may have had nothing left to do; a first run that was not killed is not a trial.
        return self._shown[:].decode().strip() if code == -signal.SIGKILL else ""

    def _await_file(self, child: int, number: int) -> None:
        """Wait until ``number`` half-written checkpoints were seen, or the process has ended."""
        seen: set[str] = set()
        while len(seen) < number and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            with suppress(FileNotFoundError):
                seen |= {name for name in os.listdir(self.folder / "checkpoints") if name.endswith(".tmp")}  # noqa: PTH208

    def _way_on(self) -> list[str]:
        return ["run", "--resume", "run"] if (self.folder / "config.toml").exists() else self._command


def differences(folder: Path, reference: Path) -> list[str]:
    """Return the files that differ in the folders of two runs, except for wall times."""
    names = [sorted(str(path.relative_to(place)) for path in place.rglob("*")) for place in (folder, reference)]
    if names[0] != names[1]:
        return [f"files: {set(names[0]) ^ set(names[1])}"]
    return [name for name in names[0] if content(folder / name) != content(reference / name)]


def content(path: Path) -> Any:
    """Return the content of a file of a run, without wall times."""
    if path.is_dir():
        return None
    if path.name == "environment.json":
        # A run that is resumed before its first checkpoint starts over, with another command.
        return {key: value for key, value in json.loads(path.read_text()).items() if key not in {"resumed", "command"}}
    if path.name == "checkpoint.json":  # in a folder that several ranks wrote
        return without_times(json.loads(path.read_text()))
    if path.name == "metrics.jsonl":
        return [without_times(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name.startswith(("stage-", "shard-")):
        with safe_open(path, "pt") as file:  # torch's shards have several entries in their headers, in no stable order
            header = {key: without_times(json.loads(text)) if key == "prunekit" else text
                      for key, text in file.metadata().items()}  # fmt: skip
            return header, {key: file.get_tensor(key).contiguous().view(-1).view(torch.uint8).numpy().tobytes()
                            for key in sorted(file.keys())}  # fmt: skip
    return path.read_bytes()


def without_times(value: Any) -> Any:
    """Remove the fields that hold wall time."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def trials(kills: int) -> Iterator[tuple[int, str, bool]]:
    """Yield number, how to kill, and whether to kill a second time."""
    for number in range(kills):
        third, place = divmod(number, 3)
        how = DRAWN[(number - third) % len(DRAWN)] if place < 2 else OUTSIDE[third % 2]
        yield number, how, place == 1


def carry_out(kills: int, seed: int, names: list[str], report: Callable[[str], object]) -> bool:
    """Carry out the trials and return whether all were equal."""
    torch.set_num_threads(1)
    equal, where = 0, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        place = Path(folder)
        warm_up(["run", *GIVEN, "--out", "given"], place / "given.log")
        prepared = [Trials(name, place) for name in names]
        for number, how, again in trials(kills):
            able = [one for one in prepared if how in OUTSIDE or how in one.counts]
            draw = random.Random(f"{seed} {number}")
            one = draw.choice(able)
            landed: list[str] = []
            while not landed:  # a timer may be late
                landed = one.kill(draw, how, again=again)
            different = differences(one.folder, one.reference)
            equal += not different
            where.update(landed)
            verdict = f"DIFFERENT: {different}" if different else "equal"
            report(f"{number + 1:3} {one.name:10} {how if how in OUTSIDE else 'by count':12} "
                 f"in {', then '.join(landed):36} {verdict}")  # fmt: skip
        report(f"{sum(where.values())} kills: {', '.join(f'{count} in {name}' for name, count in where.most_common())}")
    report(f"{equal} of {kills} equal")
    return equal == kills


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", nargs="+", choices=tuple(RUNS), default=list(RUNS))
    given = parser.parse_args()
    sys.exit(not carry_out(given.kills, given.seed, given.runs, lambda line: print(line, flush=True)))  # noqa: T201
