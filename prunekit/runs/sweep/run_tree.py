"""The runs of a sweep, which share ancestors.

Each stage of a cell, for one seed, is a run of its own that begins where the run of the stages before ended; stages
that two cells have in common are one run. This module plans; it must not train.
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
from prunekit.runs.sweep.grid import Cell

_DIGITS = 10  # of a digest: enough for a trillion runs in one folder
_LONGEST_NAME = 60


@attrs.frozen
class Node:
    """One stage of one seed, and the stages before it.

    Attributes:
        name: of its folder; different for runs that differ in anything that counts.
        parent: the name of the run that it goes on from; ``None`` for a first stage.
        config: a run that has these stages.
        last: how many stages these are.
        layers: those that the last of them prunes.
    """

    name: str
    parent: str | None
    config: RunConfig
    last: int
    layers: tuple[str, ...]


def chain(cell: Cell, seed: int) -> Iterator[Node]:
    """Yield the runs that lead to a cell, from its first stage to its last, for one seed."""
    config = attrs.evolve(cell.config, seed=seed)
    parent: str | None = None
    for last in range(1, len(cell.plan.stages) + 1):
        stages = cell.plan.stages[:last]
        name = _name(config, stages, _wanted_later(cell, last))
        layers = tuple(layer for update in stages[-1].updates for layer in update.targets)
        yield Node(name, parent, config, last, layers)
        parent = name


def _wanted_later(cell: Cell, last: int) -> list[Any]:
    """Return what later stages want kept of the stages before: a run that did not keep it cannot serve them."""
    plan = cell.plan
    starts = {stage.start for stage in plan.stages[last:] if stage.start.kind in {"initial", "step"}}
    rewinds: list[Any] = sorted(map(cattrs.unstructure, starts), key=repr)
    if cell.traced and (ranked := plan.ranked_by(last - 1)):
        rewinds.append(["traces", cattrs.unstructure(cell.config.criterion), ranked])
    return rewinds


def _name(config: RunConfig, stages: Sequence[Stage], wanted_later: list[Any]) -> str:
    training = {key: value for key, value in config.training.items() if key not in {"budget", "retraining"}}
    if all(stage.start.kind != "previous" for stage in stages[1:]):
        training.pop("retraining_rate", None)
    facts = {
        "task": cattrs.unstructure(config.task),
        # A criterion that has chosen nothing yet changes nothing.
        "criterion": cattrs.unstructure(config.criterion) if any(stage.updates for stage in stages) else None,
        "training": training,
        "given": [config.masks, config.weights],
        "seed": config.seed,
        "device": pick_device(config.device).type,
        "stages": [to_json(attrs.evolve(stage, name="")) for stage in stages],
        "rewinds": wanted_later,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    words = "+".join(f"{stage.name}" if stage.updates or not index else "on" for index, stage in enumerate(stages))
    safe = "".join(letter if letter.isalnum() or letter in "+-_." else "-" for letter in words)
    return f"seed{config.seed}-{safe[:_LONGEST_NAME]}-{digest[:_DIGITS]}"
