"""The schedule "iterative": train, prune a fraction, rewind, train again."""

from collections.abc import Iterable

import attrs

from prunekit.contracts.markers import hookimpl
from prunekit.contracts.options import option
from prunekit.contracts.schedule import MaskUpdate, Plan, PlanRequest, Schedule, Stage, Start
from prunekit.errors import ConfigError
from prunekit.masks.selection import Scope


@attrs.frozen
class Iterative(Schedule):
    """Prune the same fraction of the remaining weights in each of several rounds, with training after each.

    After a dense stage of the training budget, round k of n prunes to target ** (k / n), by the weights at the end of
    the stage before. Then ``rewind`` sets how the round trains:

    - "initial": the kept weights return to their initial values and train for the whole training budget (Frankle &
      Carbin, the lottery ticket hypothesis, 2019);
    - "step": the kept weights return to their values after step ``step`` of the dense stage (Frankle et al., linear
      mode connectivity, 2020). Learning rate and data start over: a round trains for the whole budget, not for the rest
      of it;
    - "rate": the weights are kept, and the learning rate runs through the whole training budget again (Renda et al.,
      2020);
    - "none": the weights are kept and train for the re-training budget, at its rates (fine-tuning, Han et al., 2015).
    """

    name = "iterative"

    rounds: int = option(5, "number of rounds of pruning", low=1)
    rewind: str = option(
        "initial", "the weights and rates that each round starts from", choices=("initial", "step", "rate", "none")
    )
    step: int = option(100, "step of the dense stage to which rewind=step returns", low=1)
    scope: Scope | None = option(
        None, "which connections compete; none: the criterion's own scope", choices=("unit", "layer", "global")
    )

    def plan(self, request: PlanRequest) -> Plan:
        """Return a dense stage and one for each round.

        Raises:
            ConfigError: the dense stage ends before the step to return to.
        """
        training = request.training
        if self.rewind == "step" and training.unit == "steps" and self.step > training.amount:
            raise ConfigError(
                f"schedule.step is {self.step}, but the dense stage takes {training}; use an earlier step"
            )
        start = {"initial": Start("initial"), "step": Start("step", self.step)}.get(self.rewind, Start())
        rounds = (
            Stage(
                f"round {index}",
                request.retraining if self.rewind == "none" else training,
                (MaskUpdate(0.0, self._densities(request, index), scope=self.scope),),
                start,
                rate=1.0 if self.rewind == "rate" else None,
            )
            for index in range(1, self.rounds + 1)
        )
        return Plan((Stage("dense", training), *rounds))

    def _densities(self, request: PlanRequest, index: int) -> dict[str, float]:
        return {name: target ** (index / self.rounds) for name, target in request.structure}


@hookimpl
def prunekit_schedules() -> Iterable[type[Schedule]]:
    """Return this module's schedule."""
    return [Iterative]
