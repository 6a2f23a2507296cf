"""The schedule "ac-dc": compressed and dense phases alternate while the network trains."""

from collections.abc import Iterable

import attrs

from prunekit.contracts.markers import hookimpl
from prunekit.contracts.options import option
from prunekit.contracts.schedule import Grow, MaskUpdate, Plan, PlanRequest, Schedule, Stage
from prunekit.errors import ConfigError
from prunekit.masks.selection import Scope


@attrs.frozen
class AlternatingCompression(Schedule):
    """Alternate compressed and decompressed training, and end compressed (AC/DC, Peste et al., 2021, algorithm 1).

    The plan has one stage, of the training budget. After a dense warm-up, a fraction ``warmup`` of the stage, the
    layers are pruned to their densities; after the next phase all connections come back, starting from 0; after another
    one the layers are pruned again, and so on. The ``phases`` compressed phases and the dense ones between them all
    have the same length, except the last phase, which takes ``final`` of the stage. The paper trains ImageNet for 100
    epochs with 10 of warm-up, phases of 5, and a last phase of 15.
    """

    name = "ac-dc"

    phases: int = option(8, "compressed phases, including the last one", low=1)
    warmup: float = option(0.1, "fraction of the stage that is dense before the first compressed phase", low=0, high=1)
    final: float = option(0.15, "fraction of the stage that the last compressed phase takes", low=0, high=1)
    scope: Scope | None = option(
        None, "which connections compete; none: the criterion's own scope", choices=("unit", "layer", "global")
    )

    def plan(self, request: PlanRequest) -> Plan:
        """Return one stage with all updates.

        Raises:
            ConfigError: the warm-up and the last phase leave no room for the other phases.
        """
        turns = 2 * (self.phases - 1)
        room = 1 - self.final - self.warmup
        if room < 0 or (turns and room == 0):
            raise ConfigError(
                f"schedule.warmup {self.warmup:g} and schedule.final {self.final:g} leave no room for "
                f"{self.phases} compressed phases; shorten one of them"
            )
        targets = dict(request.structure)
        dense = dict.fromkeys(targets, 1.0)
        updates = [
            MaskUpdate(self.warmup + room * turn / turns, dense, grow=Grow("random"))
            if turn % 2
            else MaskUpdate(self.warmup + room * turn / turns, targets, scope=self.scope)
            for turn in range(turns)
        ]
        return Plan((Stage("ac-dc", request.training, (*updates, MaskUpdate(1 - self.final, targets, self.scope))),))


@hookimpl
def prunekit_schedules() -> Iterable[type[Schedule]]:
    """Return this module's schedule."""
    return [AlternatingCompression]
