"""The schedule "layerwise": prune one layer after another, with re-training in between (section 3 of the paper)."""

from collections.abc import Iterable, Iterator

import attrs

from prunekit.contracts.markers import hookimpl
from prunekit.contracts.options import option
from prunekit.contracts.schedule import Budget, MaskUpdate, Plan, PlanRequest, Schedule, Stage, Start
from prunekit.errors import ConfigError
from prunekit.masks.selection import Scope


@attrs.frozen
class Layerwise(Schedule):
    """Prune the entries of the structure one by one, each from the weights of the stage before (Sun et al., 2016).

    With ``scratch``, newly drawn weights are then trained under the final masks, as a control for starting from the
    denser model:

    - "retraining": for as many steps as the pruned network was re-trained, stage by stage;
    - "same": for all steps, including the dense ones, with the same stages and rates;
    - "long": for all steps, in one stage with one decay of the learning rate.
    """

    name = "layerwise"

    scope: Scope | None = option(
        None, "which connections compete; none: the criterion's own scope", choices=("unit", "layer")
    )
    scratch: str = option(
        "none", "how long to train new weights under the final masks", choices=("none", "retraining", "same", "long")
    )

    def plan(self, request: PlanRequest) -> Plan:
        """Return a dense stage and one for each entry of the structure; earlier masks are kept."""
        pruned = (
            Stage(entry.name, request.retraining, (MaskUpdate(0.0, entry.targets, scope=self.scope),))
            for entry in request.entries
        )
        return Plan((Stage("dense", request.training), *pruned, *self._anew(request)))

    def _anew(self, request: PlanRequest) -> Iterator[Stage]:
        dense, retraining, count = request.training, request.retraining, len(request.entries)
        if self.scratch == "none":
            return
        budgets = [retraining] * count
        if self.scratch == "same":
            budgets = [dense, *budgets]
        elif self.scratch == "long":
            if dense.unit != retraining.unit:
                raise ConfigError(
                    f"schedule.scratch is 'long', but training takes {dense} and re-training {retraining}; "
                    "give both in steps or both in epochs"
                )
            budgets = [Budget(dense.amount + count * retraining.amount, dense.unit)]
        for number, budget in enumerate(budgets):
            yield Stage(f"scratch {number}", budget, start=Start() if number else Start("fresh"))


@hookimpl
def prunekit_schedules() -> Iterable[type[Schedule]]:
    """Return this module's schedule."""
    return [Layerwise]
