"""The schedule "dense-sparse-dense": pruning as a detour on the way to a better dense network."""

from collections.abc import Iterable

import attrs

from prunekit.contracts.markers import hookimpl
from prunekit.contracts.options import option
from prunekit.contracts.schedule import Grow, MaskUpdate, Plan, PlanRequest, Schedule, Stage
from prunekit.masks.selection import Scope


@attrs.frozen
class DenseSparseDense(Schedule):
    """Train, re-train under masks, then let all connections back and train on (DSD, Han et al., 2017).

    A dense stage of the training budget, one of the re-training budget at the densities asked for, and another, dense
    again, of the re-training budget: the connections that come back start from 0, and the learning rate is ``rate``
    times the task's. It ends with a dense network; the paper prunes 25 to 50 % in between.
    """

    name = "dense-sparse-dense"
    ends_dense = True

    rate: float = option(0.1, "factor on the learning rates of the last stage", low=0)
    scope: Scope | None = option(
        None, "what competes; none: what the criterion prefers", choices=("unit", "layer", "global")
    )

    def plan(self, request: PlanRequest) -> Plan:
        """Return the three stages."""
        targets = dict(request.structure)
        prune = MaskUpdate(0.0, targets, scope=self.scope)
        reopen = MaskUpdate(0.0, dict.fromkeys(targets, 1.0), grow=Grow("random"))
        return Plan(
            (
                Stage("dense", request.training),
                Stage("sparse", request.retraining, (prune,)),
                Stage("dense again", request.retraining, (reopen,), rate=self.rate),
            )
        )


@hookimpl
def prunekit_schedules() -> Iterable[type[Schedule]]:
    """Bring the schedule."""
    return [DenseSparseDense]
