"""The schedule "dense-sparse-dense": prune temporarily, to train a better dense network."""

from collections.abc import Iterable

import attrs

from prunekit.contracts.markers import hookimpl
from prunekit.contracts.options import option
from prunekit.contracts.schedule import Grow, MaskUpdate, Plan, PlanRequest, Schedule, Stage
from prunekit.masks.selection import Scope


@attrs.frozen
class DenseSparseDense(Schedule):
    """Train, re-train under masks, then restore all connections and continue training (DSD, Han et al., 2017).

    The plan has three stages: a dense one of the training budget, one of the re-training budget at the requested
    densities, and a dense one of the re-training budget, in which the restored connections start from 0 and the
    learning rate is ``rate`` times the task's. The result is a dense network; the paper prunes 25 to 50 % in between.
    """

    name = "dense-sparse-dense"
    ends_dense = True

    rate: float = option(0.1, "factor on the learning rates of the last stage", low=0)
    scope: Scope | None = option(
        None, "which connections compete; none: the criterion's own scope", choices=("unit", "layer", "global")
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
    """Return this module's schedule."""
    return [DenseSparseDense]
