"""The schedule "one-shot": prune all layers at one point, after the training or before it."""

from collections.abc import Iterable

import attrs

from prunekit.contracts.markers import hookimpl
from prunekit.contracts.options import option
from prunekit.contracts.schedule import MaskUpdate, Plan, PlanRequest, Schedule, Stage
from prunekit.masks.selection import Scope


@attrs.frozen
class OneShot(Schedule):
    """Prune all layers at once, after dense training (LeCun et al., OBD, 1989) or before training.

    - when "after": a dense stage of the training budget, then one of the re-training budget under the masks;
    - when "before", pruning at initialisation (Lee et al., SNIP, 2019): one stage, of the training budget, under masks
      chosen for the initial weights. It has no re-training; for a comparison at equal budgets, give it the steps of
      both stages.

    With n ``rounds`` the masks are updated n times at that point, to exponentially falling densities, the k-th time to
    target ** (k / n); each time the criterion scores the remaining weights again (Tanaka et al., SynFlow, 2020).
    """

    name = "one-shot"

    when: str = option("after", "prune after the training or before it", choices=("after", "before"))
    rounds: int = option(1, "number of mask updates at that point, to falling densities", low=1)
    scope: Scope | None = option(
        None, "which connections compete; none: the criterion's own scope", choices=("unit", "layer", "global")
    )

    def plan(self, request: PlanRequest) -> Plan:
        """Return one stage with all updates at its beginning, after a dense one if ``when`` is "after"."""
        updates = tuple(
            MaskUpdate(
                0.0, {name: target ** (index / self.rounds) for name, target in request.structure}, scope=self.scope
            )
            for index in range(1, self.rounds + 1)
        )
        if self.when == "before":
            return Plan((Stage("pruned", request.training, updates),))
        return Plan((Stage("dense", request.training), Stage("pruned", request.retraining, updates)))


@hookimpl
def prunekit_schedules() -> Iterable[type[Schedule]]:
    """Return this module's schedule."""
    return [OneShot]
