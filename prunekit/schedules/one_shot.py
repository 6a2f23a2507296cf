"""The schedule "one-shot": everything is pruned at one point, after the training or before it."""

from collections.abc import Iterable

import attrs

from prunekit.contracts.markers import hookimpl
from prunekit.contracts.options import option
from prunekit.contracts.schedule import MaskUpdate, Plan, PlanRequest, Schedule, Stage
from prunekit.masks.selection import Scope


@attrs.frozen
class OneShot(Schedule):
    """Prune all layers at once: after dense training (LeCun et al., OBD, 1989), or before any.

    - when "after": a dense stage of the training budget, then one of the re-training budget under the masks;
    - when "before", pruning at initialisation (Lee et al., SNIP, 2019): one stage, of the training budget, under masks
      that are chosen for the first weights. There is no re-training then, so a comparison at equal budgets gives it
      the steps of both.

    With ``rounds`` n the masks are updated n times at that point, at densities that fall exponentially, the k-th time
    to target ** (k / n); each time the criterion looks anew at what is left (Tanaka et al., SynFlow, 2020).
    """

    name = "one-shot"

    when: str = option("after", "prune after the training, or before any", choices=("after", "before"))
    rounds: int = option(1, "mask updates at that point, each with fewer weights", low=1)
    scope: Scope | None = option(
        None, "what competes; none: what the criterion prefers", choices=("unit", "layer", "global")
    )

    def plan(self, request: PlanRequest) -> Plan:
        """Return a dense stage and one with all updates at its beginning, or that one alone."""
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
    """Bring the schedule."""
    return [OneShot]
