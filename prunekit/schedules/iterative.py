"""The schedule "iterative": train, prune a part, go back, train again."""

from collections.abc import Iterable

import attrs

from prunekit.contracts.markers import hookimpl
from prunekit.contracts.options import option
from prunekit.contracts.schedule import MaskUpdate, Plan, PlanRequest, Schedule, Stage, Start
from prunekit.errors import ConfigError
from prunekit.masks.selection import Scope


@attrs.frozen
class Iterative(Schedule):
    """Prune the same fraction of what is left in each of several rounds, with training after each.

    After a dense stage of the training budget, round k of n prunes to target ** (k / n), by the weights that the stage
    before left. Then, as ``rewind`` says:

    - "initial": the kept weights go back to their first values and train the whole training budget again
      (Frankle & Carbin, the lottery ticket hypothesis, 2019);
    - "step": the same, back to their values after step ``step`` of the dense stage (Frankle et al., linear mode
      connectivity, 2020). Rates and data start over: a round takes the whole budget, not what was left of it;
    - "rate": the weights stay, and the learning rate goes through the whole training budget again (Renda et al., 2020);
    - "none": the weights stay and train on for the re-training budget, at its rates (fine-tuning, Han et al., 2015).
    """

    name = "iterative"

    rounds: int = option(5, "how often to prune", low=1)
    rewind: str = option("initial", "where each round starts from", choices=("initial", "step", "rate", "none"))
    step: int = option(100, "the step of the dense stage that rewind=step goes back to", low=1)
    scope: Scope | None = option(
        None, "what competes; none: what the criterion prefers", choices=("unit", "layer", "global")
    )

    def plan(self, request: PlanRequest) -> Plan:
        """Return a dense stage and one for each round.

        Raises:
            ConfigError: when the dense stage ends before the step to go back to.
        """
        training = request.training
        if self.rewind == "step" and training.unit == "steps" and self.step > training.amount:
            raise ConfigError(
                f"schedule.step is {self.step}, but the dense stage takes {training}; take an earlier one"
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
    """Bring the schedule."""
    return [Iterative]
