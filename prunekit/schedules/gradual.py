"""The schedule "gradual": the density falls in many small steps while the network trains."""

from collections.abc import Iterable

import attrs

from prunekit.contracts.markers import hookimpl
from prunekit.contracts.options import option
from prunekit.contracts.schedule import MaskUpdate, Plan, PlanRequest, Schedule, Stage
from prunekit.errors import ConfigError
from prunekit.masks.selection import Scope

_EXPONENTS = {"cubic": 3, "linear": 1}


@attrs.frozen
class Gradual(Schedule):
    """Prune step by step during training (Zhu & Gupta, 2017, equation 1).

    Sparsity rises from 0 at ``begin`` to the final sparsity s at ``end``, in n updates at equal distances. After the
    k-th update it is

        s_k = s (1 - (1 - k / n)^3)

    or, with a linear curve, s_k = s k / n. The rest of the stage trains under the final masks.

    - when "during": one stage of the training budget, from the initial weights, without re-training;
    - when "after": a dense stage of the training budget, then a stage of the re-training budget with the updates.
    """

    name = "gradual"

    when: str = option("during", "prune during the training or after it", choices=("during", "after"))
    curve: str = option("cubic", "how the density falls; cubic: fast at first", choices=("cubic", "linear"))
    updates: int = option(20, "number of mask updates", low=1)
    begin: float = option(0.0, "point where the density starts to fall, as a fraction of the stage", low=0, high=1)
    end: float = option(0.75, "point of the last update, as a fraction of the stage", low=0, high=1)
    scope: Scope | None = option(
        None, "which connections compete; none: the criterion's own scope", choices=("unit", "layer", "global")
    )

    def plan(self, request: PlanRequest) -> Plan:
        """Return one stage with all updates, after a dense one if ``when`` is "after".

        Raises:
            ConfigError: ``begin`` is not before ``end``.
        """
        if self.begin >= self.end:
            raise ConfigError(
                f"schedule.begin is {self.begin:g} and schedule.end is {self.end:g}; set begin to less than end"
            )
        updates = tuple(self._update(request, index / self.updates) for index in range(1, self.updates + 1))
        if self.when == "during":
            return Plan((Stage("gradual", request.training, updates),))
        return Plan((Stage("dense", request.training), Stage("gradual", request.retraining, updates)))

    def _update(self, request: PlanRequest, done: float) -> MaskUpdate:
        # (1 - done) is exactly 0 at the last update, so the requested densities are reached to the last bit.
        left = (1 - done) ** _EXPONENTS[self.curve]
        targets = {name: target + (1 - target) * left for name, target in request.structure}
        return MaskUpdate(self.begin + (self.end - self.begin) * done, targets, scope=self.scope)


@hookimpl
def prunekit_schedules() -> Iterable[type[Schedule]]:
    """Return this module's schedule."""
    return [Gradual]
