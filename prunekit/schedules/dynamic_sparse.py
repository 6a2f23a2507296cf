"""The schedules "set" and "rigl": dynamic sparse training, sparse from the first step to the last.

They differ in which connections grow and in how many are exchanged at each update. In both, the criterion chooses the
connections to drop; the papers rank by magnitude.
"""

import math
from collections.abc import Callable, Iterable
from typing import Literal

import attrs

from prunekit.contracts.markers import hookimpl
from prunekit.contracts.options import option
from prunekit.contracts.schedule import Grow, MaskUpdate, Plan, PlanRequest, Schedule, Stage
from prunekit.errors import ConfigError


@attrs.frozen
class SparseEvolutionary(Schedule):
    """Drop the lowest-ranked connections and grow as many at random, again and again (SET, Mocanu et al., 2018).

    The plan has one stage, of the training budget. The first masks are drawn at random at the requested densities, and
    the kept weights have their initial values. Then, ``updates`` times at equal distances before ``end``, a fraction of
    each layer's connections is exchanged: the criterion drops them, and as many are grown at random among all absent
    ones. Grown connections start from 0 (in the paper, from random values). The density is the same after every update;
    layers of density 1 do not change.
    """

    name = "set"

    updates: int = option(20, "number of exchanges", low=1)
    drop: float = option(
        0.3, "fraction of a layer's connections exchanged at each update (the paper's zeta)", low=0, high=0.99
    )
    end: float = option(1.0, "fraction of the stage after which masks are fixed", low=0, high=1)

    def plan(self, request: PlanRequest) -> Plan:
        """Return one stage: random masks, then the exchanges."""
        return _plan("set", request, self.updates, self.end, "random", lambda _: self.drop)


@attrs.frozen
class RigL(Schedule):
    """Drop the lowest-ranked connections and grow those with the largest gradients (RigL, Evci et al., 2020).

    The plan has one stage, of the training budget. The first masks are drawn at random at the requested densities, and
    the kept weights have their initial values. Then, ``updates`` times at equal distances before ``end`` (the paper's
    T_end), a fraction of each layer's connections is exchanged: the criterion drops them, and as many are grown where
    the gradient of the loss is largest among all absent ones. Grown connections start from 0. At point t of the stage
    the fraction is

        f(t) = drop / 2 (1 + cos(pi t / end))

    The density is the same after every update; layers of density 1 do not change. The gradient is summed over as many
    training batches as the calibration set has (the paper uses one batch).
    """

    name = "rigl"

    updates: int = option(20, "number of exchanges", low=1)
    drop: float = option(0.3, "fraction exchanged at the first update (the paper's alpha)", low=0, high=0.99)
    end: float = option(0.75, "fraction of the stage after which masks are fixed", low=0, high=1)

    def plan(self, request: PlanRequest) -> Plan:
        """Return one stage: random masks, then the exchanges."""
        return _plan("rigl", request, self.updates, self.end, "gradient", self._fraction)

    def _fraction(self, at: float) -> float:
        return self.drop / 2 * (1 + math.cos(math.pi * at / self.end))


def _plan(
    name: str,
    request: PlanRequest,
    updates: int,
    end: float,
    grow: Literal["gradient", "random"],
    fraction: Callable[[float], float],
) -> Plan:
    if end == 0:
        raise ConfigError("schedule.end is 0, so connections are never exchanged; use a fraction of the stage above 0")
    targets = dict(request.structure)
    sparse = {layer: density for layer, density in targets.items() if density < 1}
    points = (end * index / (updates + 1) for index in range(1, updates + 1))
    exchanges = (MaskUpdate(at, sparse, grow=Grow(grow, fraction(at))) for at in points) if sparse else ()
    first = MaskUpdate(0.0, targets, by="random")
    return Plan((Stage(name, request.training, (first, *exchanges)),))


@hookimpl
def prunekit_schedules() -> Iterable[type[Schedule]]:
    """Return this module's schedules."""
    return [SparseEvolutionary, RigL]
