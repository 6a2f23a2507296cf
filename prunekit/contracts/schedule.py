"""The contract of a schedule, a pure function from the layers of a network to a plan.

A plan is a list of stages; a stage trains for a budget, from given weights, and updates masks at given points. Because
a plan is plain data, ``prunekit plan`` prints it, tests need no training, and a resumed run needs only an index. This
module never trains and never looks at data.
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
from prunekit.masks.selection import Channels, Pattern, Scope, Units, kept_count, pattern_problem, requested_count


@attrs.frozen
class Budget:
    """A length of training, in optimiser steps or epochs.

    >>> Budget.parse("3 epochs").steps(40)
    120

    Attributes:
        amount: number of steps or epochs.
        unit: "steps" or "epochs".
    """

    amount: int
    unit: Literal["steps", "epochs"]

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Parse a budget such as "600 steps" or "12 epochs".

        Raises:
            ConfigError: the text is not a whole number of steps or epochs.
        """
        match = re.fullmatch(r"\s*(\d+)\s*(steps?|epochs?)\s*", text)
        if match is None:
            raise ConfigError(f"cannot parse training budget {text!r}; expected for example '600 steps' or '12 epochs'")
        return cls(int(match[1]), "steps" if match[2].startswith("step") else "epochs")

    def steps(self, steps_per_epoch: int) -> int:
        """Return the budget in optimiser steps."""
        return self.amount * (steps_per_epoch if self.unit == "epochs" else 1)

    def __str__(self) -> str:
        return f"{self.amount} {self.unit if self.amount != 1 else self.unit[:-1]}"


@attrs.frozen
class Grow:
    """Growth at a mask update: dropped connections come back, starting from zero.

    Attributes:
        by: which connections come back: those with the largest gradients before masking ("gradient", RigL), or a
            random draw ("random", SET).
        fraction: how many of the connections after the update are exchanged, in [0, 1): the criterion first prunes to
            ``(1 - fraction) * density``, then growth adds connections up to ``density``.
    """

    by: Literal["gradient", "random"]
    fraction: float = 0.0


@attrs.frozen
class MaskUpdate:
    """One change of masks within a stage.

    Attributes:
        at: the time of the update, as a fraction of the stage's budget in [0, 1]. At 0 the criterion sees the weights
            at the end of the stage before, whatever weights this stage then starts from.
        targets: layer name -> density after the update, in (0, 1].
        scope: which connections compete: those of a unit ("unit"), of a layer ("layer"), or of all targets together
            ("global": the total is exact, and scores decide each layer's share). ``None``: the criterion's own scope.
        pattern: N:M, blocks, whole units or channels; ``None``: unstructured.
        grow: how dropped connections come back; ``None``: they never do.
        by: what ranks the connections: the criterion, or a random draw in which all have the same chance (the first
            masks of dynamic sparse training). In a random draw without a ``scope``, the connections of a layer compete.
    """

    at: float
    targets: Mapping[str, float]
    scope: Scope | None = None
    pattern: Pattern | None = None
    grow: Grow | None = None
    by: Literal["criterion", "random"] = "criterion"

    @property
    def reopens(self) -> bool:
        """Whether every connection of the targets comes back, so that nothing is selected."""
        return self.grow is not None and self.grow.fraction == 0 and set(self.targets.values()) == {1.0}

    def competition(self, preferred: Scope) -> Scope:
        """Return the scope of the update: its own, or the ``preferred`` one if the pattern allows that.

        Pieces of a pattern compete within their layer by default. Whole units and channels cannot compete within a
        unit.
        """
        if self.scope is not None or self.pattern is None:
            return self.scope or preferred
        return "layer" if preferred == "global" or isinstance(self.pattern, Units | Channels) else preferred


@attrs.frozen
class Start:
    """The weights that a stage starts from; masks are always kept.

    Attributes:
        kind: "previous" (the weights at the end of the stage before), "initial" (the run's first weights), "step"
            (those after ``step`` optimiser steps of the run), or "fresh" (newly drawn).
        step: number of optimiser steps from the beginning of the run, for kind "step".
    """

    kind: Literal["previous", "initial", "step", "fresh"] = "previous"
    step: int = 0


@attrs.frozen
class Stage:
    """One entry of a plan: a training budget, the weights it starts from, and the mask updates within it.

    Attributes:
        name: the stage's name in tables and files.
        budget: length of the training.
        updates: mask updates, in ascending order of ``at``.
        start: the weights to start from.
        rate: factor on the task's learning rates. ``None``: the setting ``retraining_rate`` if the stage continues
            from trained weights, otherwise 1.
    """

    name: str
    budget: Budget
    updates: tuple[MaskUpdate, ...] = ()
    start: Start = Start()
    rate: float | None = None


@attrs.frozen
class Plan:
    """The stages of a run.

    >>> prune = MaskUpdate(0.0, {"fc": 0.1})
    >>> plan = Plan((Stage("dense", Budget(10, "epochs")), Stage("pruned", Budget(5, "epochs"), (prune,))))

    Attributes:
        stages: at least one, in the order of training.
    """

    stages: tuple[Stage, ...]

    def ranked_by(self, stage: int) -> tuple[str, ...]:
        """Return the layers that the criterion ranks in a stage or the next one, and so by this stage's training."""
        updates = (update for later in self.stages[stage : stage + 2] for update in later.updates)
        ranked = (update for update in updates if update.by == "criterion" and not update.reopens)
        return tuple(dict.fromkeys(name for update in ranked for name in update.targets))


@attrs.frozen
class Target:
    """One entry of a structure: the layers that a layer-by-layer schedule prunes together.

    Attributes:
        name: the layer's name, or the alias if it stands for a layer in each of several networks.
        targets: layer name -> density, in (0, 1].
    """

    name: str
    targets: Mapping[str, float]


@attrs.frozen
class PlanRequest:
    """The layers, densities and budgets for which a schedule makes a plan.

    Attributes:
        layers: the prunable layers, from input to output.
        entries: the layers to prune with their densities, in the order of the user's structure; names are resolved.
        training: budget of the dense training.
        retraining: budget of each stage after it.
    """

    layers: Sequence[LayerShape]
    entries: Sequence[Target]
    training: Budget
    retraining: Budget

    @property
    def structure(self) -> tuple[tuple[str, float], ...]:
        """(Layer name, density) of all entries, in their order, for schedules that prune all of them at once."""
        return tuple(target for entry in self.entries for target in entry.targets.items())


class Schedule(abc.ABC):
    """Makes the plan of a run.

        @attrs.frozen
        class PruneOnce(Schedule):  # train, prune, re-train
            name = "prune-once"

            def plan(self, request):
                prune = MaskUpdate(0.0, dict(request.structure))
                return Plan((Stage("dense", request.training), Stage("pruned", request.retraining, (prune,))))

    A schedule is an attrs class; the arguments of its constructor are its options.

    Class attributes:
        name: the schedule's name on the command line and in recipes.
        ends_dense: whether its plans end with all connections back, rather than at the requested densities.
    """

    name: ClassVar[str]
    ends_dense: ClassVar[bool] = False

    @abc.abstractmethod
    def plan(self, request: PlanRequest) -> Plan:
        """Return the plan. It must be pure: the same request always gives the same plan."""


def to_json(record: Plan | Stage) -> dict[str, Any]:
    """Return a plan or a stage as plain data, with patterns as text because some of them have no fields."""
    plain: dict[str, Any] = attrs.asdict(
        record, value_serializer=lambda _, __, value: str(value) if isinstance(value, Pattern) else value
    )
    return plain


def check_plan(plan: Plan, layers: Sequence[LayerShape], given: Mapping[str, float] | None = None) -> None:
    """Raise an error if a plan cannot be carried out.

    Args:
        plan: the plan of a schedule.
        layers: the prunable layers.
        given: layer name -> density at the start, for layers that already have a mask.

    Raises:
        ConfigError: the plan has no stage, an unknown layer, a density outside (0, 1], updates out of order or outside
            [0, 1], a density that rises without growth or keeps nothing, growth together with scope "global" or a
            pattern (except if all connections come back), a pattern that does not fit a layer, or a negative rate.
    """
    if not plan.stages:
        raise ConfigError("the plan has no stage; a schedule must return at least one")
    shapes = {layer.name: layer for layer in layers}
    known = {layer.name: layer.weights for layer in layers}
    density = dict.fromkeys(known, 1.0) | dict(given or {})
    for stage in plan.stages:
        if stage.rate is not None and not 0 <= stage.rate < math.inf:
            raise ConfigError(
                f"stage {stage.name!r}: the factor on the learning rates is {stage.rate:g}, expected a finite number "
                "of at least 0"
            )
        points = [update.at for update in stage.updates]
        if points != sorted(points) or any(not 0 <= at <= 1 for at in points):
            raise ConfigError(f"stage {stage.name!r}: mask updates at {points}, expected ascending fractions in [0, 1]")
        for update in stage.updates:
            _check_growth(update, stage.name)
            for name, target in update.targets.items():
                if name not in known:
                    raise ConfigError(f"stage {stage.name!r} prunes an unknown layer {name!r}{nearest(name, known)}")
                check_density(target, f"stage {stage.name!r}, layer {name!r}")
                check_target(update, shapes[name])
                rises = kept_count(target, known[name]) > kept_count(density[name], known[name])
                if rises and update.grow is None:
                    raise ConfigError(
                        f"stage {stage.name!r}: the density of {name!r} rises from {density[name]:g} to {target:g}, "
                        "but dropped connections come back only by growth; set grow in the mask update"
                    )
                density[name] = target


def check_target(update: MaskUpdate, layer: LayerShape) -> None:
    """Raise an error if an update keeps no weight of a layer, or if its pattern does not fit the layer.

    Raises:
        ConfigError: the message names the layer.
    """
    if update.reopens:
        return
    density = update.targets[layer.name]
    problem = pattern_problem(update.pattern, density, layer.outputs, layer.fan_shape)
    problem = problem or scope_problem(update.pattern, update.scope)
    if not problem and requested_count(density, layer.weights, update.pattern, layer.fan) == 0:
        problem = f"density {density:g} keeps none of its {layer.weights:,} weights; raise the density"
    if problem:
        raise ConfigError(f"layer {layer.name!r}: {problem}")


def _check_growth(update: MaskUpdate, stage: str) -> None:
    if update.reopens and isinstance(update.pattern, Channels):
        raise ConfigError(
            f"stage {stage!r}: all connections come back, but the normalisation of a removed channel is 0, so the "
            "channel would never learn again; use pattern 'units' or another schedule"
        )
    if update.grow is None or update.reopens:
        return
    if update.scope == "global" or update.pattern is not None:
        raise ConfigError(
            f"stage {stage!r}: growth works on single layers without a pattern; use scope 'layer' and no pattern, or a "
            "schedule without growth"
        )
    if not 0 <= update.grow.fraction < 1:
        raise ConfigError(
            f"stage {stage!r}: growth exchanges a fraction of {update.grow.fraction:g}, expected one in [0, 1)"
        )


def check_density(density: float, where: str) -> None:
    """Raise an error if a density is outside (0, 1], with a hint if a percentage was meant.

    Args:
        density: kept / total.
        where: the setting or layer that the message names.

    Raises:
        ConfigError: the density is outside (0, 1].
    """
    if math.isfinite(density) and 0 < density <= 1:
        return
    percent = density / 100
    hint = f"; for {density:g} percent write {percent:g}" if density > 1 and percent <= 1 else ""
    raise ConfigError(f"{where}: density {density:g} is outside (0, 1]{hint}")
