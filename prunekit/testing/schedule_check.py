"""The check of a schedule."""

from collections.abc import Sequence
from typing import Any

from prunekit.contracts.schedule import Budget, Plan, PlanRequest, Schedule, check_plan
from prunekit.errors import ConfigError
from prunekit.layers.lookup import find_layers
from prunekit.layers.view import LayerShape
from prunekit.pruning.structure_text import resolve_structure
from prunekit.testing.construction import check_class, make
from prunekit.testing.toy_task import ToyNetwork


def check_schedule(cls: type[Schedule], **options: Any) -> None:
    """Check that a schedule is pure, and that its plans are valid and end at the requested densities.

        check_schedule(PruneOnce)

    Args:
        cls: the schedule class.
        options: its options.

    Raises:
        AssertionError: the schedule cannot be made, or its plan fails for a structure, which the message names.
    """
    check_class(cls, "schedule")
    layers = tuple(view.shape(name) for name, view in find_layers(ToyNetwork()).items())
    for text in ("hidden=1/4", "hidden=1/4 conv_b=0.5", "*=0.1"):
        structure = resolve_structure(text, [layer.name for layer in layers])
        request = PlanRequest(layers, structure, Budget(60, "steps"), Budget(20, "steps"))
        plan = _plan(cls, options, request)
        assert plan == _plan(cls, options, request), f"{cls.__name__} returns different plans for the same request"
        wanted = {name: 1.0 if cls.ends_dense else density for name, density in request.structure}
        _check_end(cls, plan, layers, wanted, text)


def _plan(cls: type[Schedule], options: dict[str, Any], request: PlanRequest) -> Plan:
    schedule: Schedule = make(cls, options, "schedule")
    plan = schedule.plan(request)
    assert isinstance(plan, Plan), f"{cls.__name__} returns a {type(plan).__name__}, expected a Plan"
    return plan


def _check_end(
    cls: type[Schedule], plan: Plan, layers: Sequence[LayerShape], wanted: dict[str, float], text: str
) -> None:
    try:
        check_plan(plan, layers)
    except ConfigError as error:
        raise AssertionError(f"{cls.__name__} with structure {text!r}: {error}") from error
    reached = {
        name: density for stage in plan.stages for update in stage.updates for name, density in update.targets.items()
    }
    assert reached == wanted, f"{cls.__name__} with structure {text!r} ends at {reached}, expected {wanted}"
