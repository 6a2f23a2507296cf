"""The schedule "one-shot": train densely, prune everything at once, train on."""

from collections.abc import Iterable

import attrs

from prunekit.markers import hookimpl
from prunekit.options import option
from prunekit.schedules import MaskUpdate, Plan, PlanRequest, Schedule, Stage
from prunekit.selection import Scope


@attrs.frozen
class OneShot(Schedule):
    """Prune all layers at once after dense training, then re-train."""

    name = "one-shot"

    scope: Scope | None = option(
        None, "what competes; none: what the criterion prefers", choices=("unit", "layer", "global")
    )

    def plan(self, request: PlanRequest) -> Plan:
        """Return a dense stage and one with all densities at its beginning."""
        update = MaskUpdate(0.0, dict(request.structure), scope=self.scope)
        return Plan((Stage("dense", request.training), Stage("pruned", request.retraining, (update,))))


@hookimpl
def prunekit_schedules() -> Iterable[type[Schedule]]:
    """Bring the schedule."""
    return [OneShot]
