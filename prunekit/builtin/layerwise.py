"""The schedule "layerwise": one layer after the other, re-training in between (section 3 of the paper)."""

from collections.abc import Iterable

import attrs

from prunekit.markers import hookimpl
from prunekit.options import option
from prunekit.schedules import MaskUpdate, Plan, PlanRequest, Schedule, Stage
from prunekit.selection import Scope


@attrs.frozen
class Layerwise(Schedule):
    """Prune layer after layer in the order of the structure, each from the weights before (Sun et al., 2016)."""

    name = "layerwise"

    scope: Scope | None = option(None, "what competes; none: what the criterion prefers", choices=("unit", "layer"))

    def plan(self, request: PlanRequest) -> Plan:
        """Return a dense stage and one for each layer of the structure; earlier masks stay as they are."""
        pruned = (
            Stage(layer, request.retraining, (MaskUpdate(0.0, {layer: density}, scope=self.scope),))
            for layer, density in request.structure
        )
        return Plan((Stage("dense", request.training), *pruned))


@hookimpl
def prunekit_schedules() -> Iterable[type[Schedule]]:
    """Bring the schedule."""
    return [Layerwise]
