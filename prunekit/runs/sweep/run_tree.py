"""The tree of the runs of a sweep: cells share the runs of the stages that they have in common.

For each seed, each stage of a cell is a run of its own, which continues the run of the stages before it. This module
must not train.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import cattrs

from prunekit.contracts.schedule import Stage, to_json
from prunekit.distributed.devices import pick_device
from prunekit.runs.config import RunConfig
from prunekit.runs.sweep.cells import Cell

_DIGITS = 10  # of a digest: enough for a trillion runs in one folder
_LONGEST_NAME = 60


@attrs.frozen
class StageRun:
    """The run of one stage for one seed, and what it continues.

    Attributes:
        name: of its folder; runs that differ in anything that matters have different names.
        parent: the name of the run that it continues; ``None`` for a first stage.
        config: a configuration whose plan begins with these stages.
        stages: the number of stages, those of its ancestors included.
        layers: the layers that its stage prunes.
    """

    name: str
    parent: str | None
    config: RunConfig
    stages: int
    layers: tuple[str, ...]


def stage_runs(cell: Cell, seed: int) -> Iterator[StageRun]:
    """Yield the runs of a cell for one seed, from its first stage to its last."""
    config = attrs.evolve(cell.config, seed=seed)
    parent: str | None = None
    for count in range(1, len(cell.plan.stages) + 1):
        stages = cell.plan.stages[:count]
        name = _name(config, stages, _needed_later(cell, count))
        layers = tuple(layer for update in stages[-1].updates for layer in update.targets)
        yield StageRun(name, parent, config, count, layers)
        parent = name


def _needed_later(cell: Cell, count: int) -> list[Any]:
    """Return what the later stages need from the first ``count``: a run that did not save it cannot be continued."""
    plan = cell.plan
    starts = {stage.start for stage in plan.stages[count:] if stage.start.kind in {"initial", "step"}}
    needed: list[Any] = sorted(map(cattrs.unstructure, starts), key=repr)
    if cell.traced and (ranked := plan.ranked_by(count - 1)):
        needed.append(["traces", cattrs.unstructure(cell.config.criterion), ranked])
    return needed


def _name(config: RunConfig, stages: Sequence[Stage], needed_later: list[Any]) -> str:
    training = {key: value for key, value in config.training.items() if key not in {"budget", "retraining"}}
    if all(stage.start.kind != "previous" for stage in stages[1:]):
        training.pop("retraining_rate", None)
    facts = {
        "task": cattrs.unstructure(config.task),
        # Before the first mask update, the criterion has no effect.
        "criterion": cattrs.unstructure(config.criterion) if any(stage.updates for stage in stages) else None,
        "training": training,
        "given": [config.masks, config.weights],
        "seed": config.seed,
        "device": pick_device(config.device).type,
        "stages": [to_json(attrs.evolve(stage, name="")) for stage in stages],
        "rewinds": needed_later,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    words = "+".join(f"{stage.name}" if stage.updates or not index else "on" for index, stage in enumerate(stages))
    safe = "".join(letter if letter.isalnum() or letter in "+-_." else "-" for letter in words)
    return f"seed{config.seed}-{safe[:_LONGEST_NAME]}-{digest[:_DIGITS]}"
