"""Step 4 of a preparation, plan: the layers to prune, the stages, and checks that they fit the network and each other.

It must not train, and must not read data or files.
"""

from collections.abc import Callable, Mapping, Sequence

import attrs

from prunekit.contracts.criterion import Criterion, observes
from prunekit.contracts.schedule import Plan, PlanRequest, Stage, Target, check_plan
from prunekit.contracts.task import Task
from prunekit.contracts.training import budget_of
from prunekit.errors import ConfigError
from prunekit.layers.lookup import check_layers
from prunekit.masks.patterns import Channels
from prunekit.runs.config import RunConfig
from prunekit.runs.preparing.choices import ChosenPlugins
from prunekit.runs.preparing.network import FoundNetwork


@attrs.frozen
class PlannedRun:
    """The plan of a run.

    Attributes:
        structure: the layers to prune with their densities, in that order.
        plan: the stages.
    """

    structure: tuple[Target, ...]
    plan: Plan


def plan_run(
    config: RunConfig, chosen: ChosenPlugins, found: FoundNetwork, given_densities: Mapping[str, float]
) -> PlannedRun:
    """Make the plan of a run and check it.

    Args:
        config: the structure, pattern and scope that the user requested.
        chosen: the plugins of the run.
        found: its network.
        given_densities: layer -> density of a mask that the run starts from.

    Raises:
        ConfigError: a structure, plan or criterion that does not fit the network or the others.
    """
    structure = _structure(config, chosen.task, found)
    dense, retraining = budget_of(chosen.training)
    if config.freeze_masks:
        plan = Plan((Stage("retrain", retraining),))
    else:
        plan = _with_defaults(chosen.schedule.plan(PlanRequest(found.layers, structure, dense, retraining)), config)
        _check_global(plan, config, structure)
        check_plan(plan, found.layers, given_densities)
        if config.dense:
            plan = Plan(tuple(attrs.evolve(stage, updates=()) for stage in plan.stages))
    _check_traces(chosen.make_criterion(), plan)
    _check_updates(plan, found, chosen.make_criterion)
    return PlannedRun(structure, plan)


def _structure(config: RunConfig, task: Task, found: FoundNetwork) -> tuple[Target, ...]:
    if config.freeze_masks:
        return ()
    others = dict(found.network.named_modules()).keys() - {layer.name for layer in found.layers}
    structure = config.requested_structure().or_default(task.structure)
    return structure.targets(found.layers, task.aliases, others, found.channel_groups)


def _with_defaults(plan: Plan, config: RunConfig) -> Plan:
    """Give the run's scope and pattern to every update that has none of its own."""

    def completed(stage: Stage) -> Stage:
        updates = (
            attrs.evolve(update, scope=update.scope or config.scope, pattern=update.pattern or config.parsed_pattern)
            for update in stage.updates
        )
        return attrs.evolve(stage, updates=tuple(updates))

    return Plan(tuple(map(completed, plan.stages)))


def _check_global(plan: Plan, config: RunConfig, structure: Sequence[Target]) -> None:
    """Refuse scope "global" if every update prunes a single layer."""
    layers = [len(update.targets) for stage in plan.stages for update in stage.updates]
    if config.scope == "global" and max(layers, default=1) == 1 and len(structure) > 1:
        raise ConfigError(
            f"scope 'global' lets the layers of a mask update compete, but schedule {config.schedule.name!r} prunes "
            "one layer at a time; use a schedule that prunes all layers at once, such as one-shot"
        )


def _check_traces(criterion: Criterion, plan: Plan) -> None:
    """Refuse a criterion that ranks by training steps if pruning comes before the first step."""
    first = plan.stages[0]
    at_start = any(update.at == 0 and update.by == "criterion" and not update.reopens for update in first.updates)
    if "training" in criterion.needs and at_start:
        raise ConfigError(
            f"criterion {criterion.name!r} ranks by what training steps did, but stage {first.name!r} prunes before "
            "the first step; use a schedule that trains before it prunes, such as gradual, one-shot or layerwise"
        )


def _check_updates(plan: Plan, found: FoundNetwork, make_criterion: Callable[[], Criterion]) -> None:
    """Refuse an update that the criterion, the layers or the channels of the network cannot carry out."""
    for update in (update for stage in plan.stages for update in stage.updates):
        criterion = make_criterion()
        check_layers({name: found.views[name] for name in update.targets}, observed=observes(criterion))
        criterion.check(update.competition(criterion.scope), update.pattern)
        if found.channel_groups is not None and isinstance(update.pattern, Channels):
            found.channel_groups.check(update.targets)
