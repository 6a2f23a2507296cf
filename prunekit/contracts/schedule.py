"""The contract of a schedule: a pure function from the layers of a network to a plan.

A plan is a list of stages; a stage trains for a budget, from given weights, and changes masks at given
points. Because a plan is plain data, ``prunekit plan`` prints it, tests need no training, and resuming
is an index. This module never trains and never looks at data.
"""

import abc
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import attrs

from prunekit.errors import ConfigError, nearest
from prunekit.layers.view import LayerShape
from prunekit.masks.patterns import scope_problem
from prunekit.masks.selection import Channels, Pattern, Scope, Units, asked_count, kept_count, pattern_problem


@attrs.frozen
class Budget:
    """How long to train: a number of optimiser steps or of epochs.

    >>> Budget.parse("3 epochs").steps(40)
    120
    """

    amount: int
    unit: Literal["steps", "epochs"]

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read "600 steps" or "12 epochs".

        Raises:
            ConfigError: for anything else.
        """
        match = re.fullmatch(r"\s*(\d+)\s*(steps?|epochs?)\s*", text)
        if match is None:
            raise ConfigError(
                f"training budget {text!r} is not understood, expected for example '600 steps' or '12 epochs'"
            )
        return cls(int(match[1]), "steps" if match[2].startswith("step") else "epochs")

    def steps(self, steps_per_epoch: int) -> int:
        """Return the budget in optimiser steps."""
        return self.amount * (steps_per_epoch if self.unit == "epochs" else 1)

    def __str__(self) -> str:
        return f"{self.amount} {self.unit if self.amount != 1 else self.unit[:-1]}"


@attrs.frozen
class Grow:
    """Let dropped connections come back at a mask update; they start from zero.

    Attributes:
        by: the largest gradients (RigL), taken before masking, or a random draw (SET).
        fraction: of the connections the layer is to have after the update, how many are exchanged: the
            criterion first prunes down to ``(1 - fraction) * density``, then growth fills up to ``density``.
    """

    by: Literal["gradient", "random"]
    fraction: float = 0.0


@attrs.frozen
class MaskUpdate:
    """One change of masks within a stage.

    Attributes:
        at: when, as a fraction of the stage's budget. At 0 the criterion sees the weights that the
            stage before left, whatever the stage then starts from.
        targets: layer name -> density after the update, in (0, 1].
        scope: what competes: the connections of a unit, of a layer, or of all targets together
            ("global": the total is exact, the layers share it by score). ``None``: as the criterion prefers.
        pattern: N:M, blocks, whole units or channels; ``None``: unstructured.
        grow: ``None``: a dropped connection never comes back.
        by: who ranks the connections: the criterion, or a random draw, each with the same chance (the first masks
            of dynamic sparse training). What competes in a random draw are the layers' connections, where
            ``scope`` does not say.
    """

    at: float
    targets: Mapping[str, float]
    scope: Scope | None = None
    pattern: Pattern | None = None
    grow: Grow | None = None
    by: Literal["criterion", "random"] = "criterion"

    @property
    def reopens(self) -> bool:
        """Whether every connection of the targets comes back, so that there is nothing to select."""
        return self.grow is not None and self.grow.fraction == 0 and set(self.targets.values()) == {1.0}

    def competition(self, preferred: Scope) -> Scope:
        """Return what competes: the update's own scope, or what the criterion prefers where the pattern allows it.

        Pieces of a pattern compete within their layer, if nobody asks otherwise; whole units have no competition
        inside themselves.
        """
        if self.scope is not None or self.pattern is None:
            return self.scope or preferred
        return "layer" if preferred == "global" or isinstance(self.pattern, Units | Channels) else preferred


@attrs.frozen
class Start:
    """The weights that a stage starts from; masks always stay as they are.

    Attributes:
        kind: "previous" (what the stage before left), "initial" (the run's first weights), "step" (those
            after ``step`` optimiser steps of the run), "fresh" (drawn anew).
    """

    kind: Literal["previous", "initial", "step", "fresh"] = "previous"
    step: int = 0


@attrs.frozen
class Stage:
    """One entry of a plan: masks updated within a training budget, and what the weights start from.

    Attributes:
        name: for tables.
        budget: how long to train.
        updates: in the order of their points.
        start: the weights to start from.
        rate: a factor on the task's learning rates. ``None``: the setting ``retraining_rate`` where the stage goes
            on from trained weights, else 1.
    """

    name: str
    budget: Budget
    updates: tuple[MaskUpdate, ...] = ()
    start: Start = Start()
    rate: float | None = None


@attrs.frozen
class Plan:
    """The stages of a run, in order."""

    stages: tuple[Stage, ...]

    def ranked_by(self, stage: int) -> tuple[str, ...]:
        """Return the layers that the criterion ranks in a stage or in the one after it, so by what its training did."""
        updates = (update for later in self.stages[stage : stage + 2] for update in later.updates)
        asked = (update for update in updates if update.by == "criterion" and not update.reopens)
        return tuple(dict.fromkeys(name for update in asked for name in update.targets))


@attrs.frozen
class Target:
    """One step of a structure: what is pruned together where a schedule goes layer by layer.

    Attributes:
        name: the layer's name; where an alias means a layer in each of several networks, that alias.
        targets: layer name -> density.
    """

    name: str
    targets: Mapping[str, float]


@attrs.frozen
class PlanRequest:
    """What a schedule plans for.

    Attributes:
        layers: the prunable layers, from input to output.
        entries: what to prune, in the order the user wrote it; names are resolved.
        training: the budget of dense training.
        retraining: the budget of each stage after it.
    """

    layers: Sequence[LayerShape]
    entries: Sequence[Target]
    training: Budget
    retraining: Budget

    @property
    def structure(self) -> tuple[tuple[str, float], ...]:
        """(Layer, density) of all entries, in their order, for schedules that do not care what goes together."""
        return tuple(target for entry in self.entries for target in entry.targets.items())


class Schedule(abc.ABC):
    """Makes the plan. An attrs class; its constructor's arguments are its options.

    Class attributes:
        name: what the user writes.
        ends_dense: whether its plans end with all connections back, and not at the densities asked for.
    """

    name: ClassVar[str]
    ends_dense: ClassVar[bool] = False

    @abc.abstractmethod
    def plan(self, request: PlanRequest) -> Plan:
        """Return the stages. Pure: the same request gives the same plan."""


def to_json(record: Plan | Stage) -> dict[str, Any]:
    """Return a plan or a stage as plain data; patterns are text, since some have nothing but their name."""
    plain: dict[str, Any] = attrs.asdict(
        record, value_serializer=lambda _, __, value: str(value) if isinstance(value, Pattern) else value
    )
    return plain


def check_plan(plan: Plan, layers: Sequence[LayerShape], given: Mapping[str, float] | None = None) -> None:
    """Refuse a plan that cannot be carried out.

    Args:
        plan: what a schedule made.
        layers: the prunable layers.
        given: layer -> density at the start, of those that have a mask then.

    Raises:
        ConfigError: no stage; an unknown layer; a density outside (0, 1]; points out of order or outside [0, 1]; a
            density that rises without growth or keeps nothing; growth together with global ranking or a pattern
            (but for a return of all connections); a pattern that does not fit a layer; a negative rate.
    """
    if not plan.stages:
        raise ConfigError("the plan has no stage; a schedule must return at least one")
    shapes = {layer.name: layer for layer in layers}
    known = {layer.name: layer.weights for layer in layers}
    density = dict.fromkeys(known, 1.0) | dict(given or {})
    for stage in plan.stages:
        if stage.rate is not None and not 0 <= stage.rate < math.inf:
            raise ConfigError(f"stage {stage.name!r}: learning rates times {stage.rate:g}, expected at least 0")
        points = [update.at for update in stage.updates]
        if points != sorted(points) or any(not 0 <= at <= 1 for at in points):
            raise ConfigError(f"stage {stage.name!r}: mask updates at {points}, expected rising fractions in [0, 1]")
        for update in stage.updates:
            _check_growth(update, stage.name)
            for name, target in update.targets.items():
                if name not in known:
                    raise ConfigError(f"stage {stage.name!r} names layer {name!r}{nearest(name, known)}")
                check_density(target, f"stage {stage.name!r}, layer {name!r}")
                check_target(update, shapes[name])
                rises = kept_count(target, known[name]) > kept_count(density[name], known[name])
                if rises and update.grow is None:
                    raise ConfigError(
                        f"stage {stage.name!r}: density of {name!r} rises from {density[name]:g} to {target:g}, "
                        "but a dropped connection never comes back; give the update a Grow"
                    )
                density[name] = target


def check_target(update: MaskUpdate, layer: LayerShape) -> None:
    """Refuse a density that keeps nothing of a layer, or a pattern that does not fit it.

    Raises:
        ConfigError: naming the layer.
    """
    if update.reopens:
        return
    density = update.targets[layer.name]
    problem = pattern_problem(update.pattern, density, layer.outputs, layer.fan_shape)
    problem = problem or scope_problem(update.pattern, update.scope)
    if not problem and asked_count(density, layer.weights, update.pattern, layer.fan) == 0:
        problem = f"density {density:g} keeps none of its {layer.weights:,} weights"
    if problem:
        raise ConfigError(f"layer {layer.name!r}: {problem}")


def _check_growth(update: MaskUpdate, stage: str) -> None:
    if update.reopens and isinstance(update.pattern, Channels):
        raise ConfigError(
            f"stage {stage!r}: all connections come back, but of channels that are gone the normalisation is 0, too, "
            "and they would never learn; take pattern 'units', or another schedule"
        )
    if update.grow is None or update.reopens:
        return
    if update.scope == "global" or update.pattern is not None:
        raise ConfigError(f"stage {stage!r}: growth fills up single layers without a pattern; leave out one of the two")
    if not 0 <= update.grow.fraction < 1:
        raise ConfigError(f"stage {stage!r}: growth exchanges a fraction of {update.grow.fraction:g}, expected [0, 1)")


def check_density(density: float, where: str) -> None:
    """Refuse a density outside (0, 1], with a hint where percent were meant.

    Raises:
        ConfigError: naming ``where``.
    """
    if math.isfinite(density) and 0 < density <= 1:
        return
    percent = density / 100
    hint = f"; for {density:g} percent write {percent:g}" if density > 1 and percent <= 1 else ""
    raise ConfigError(f"{where}: density {density:g} is outside (0, 1]{hint}")
