"""The kit for authors of plugins: a toy task that trains in a second, and checks of the contracts.

The checks raise ``AssertionError`` with a sentence; call them from any test runner. They go the way the
engine goes, so what passes here runs there.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import attrs
import torch
from torch import Tensor, nn

from prunekit.contracts.criterion import Criterion
from prunekit.contracts.schedule import Budget, MaskUpdate, Plan, PlanRequest, Schedule, check_plan
from prunekit.contracts.seeds import Seeds
from prunekit.contracts.task import Split, Task
from prunekit.errors import ConfigError, PrunekitError
from prunekit.layers.lookup import find_layers
from prunekit.layers.torch_views import core_view
from prunekit.layers.view import LayerShape, LayerView, ViewOf
from prunekit.masks.selection import Scope
from prunekit.plugins.construct import construct
from prunekit.plugins.registry import Kind, contract_problem
from prunekit.pruning.evidence import Evidence, NetworkEvidence, ShowBatches
from prunekit.pruning.structure_text import resolve_structure
from prunekit.pruning.training_traces import no_traces
from prunekit.pruning.update import ChosenMasks, PrunableNetwork, choose_masks
from prunekit.testing.toy_task import ToyNetwork, ToyTask

__all__ = ["ToyNetwork", "ToyTask", "check_criterion", "check_schedule", "check_task"]


def check_criterion(cls: type[Criterion], **options: Any) -> None:
    """Check that a criterion keeps its contract on convolutions, grouped too, and linear layers.

    Args:
        cls: the class.
        options: its options.

    Raises:
        AssertionError: it cannot be made; scores of a wrong shape, NaN (with dead neurons, too), other
            scores the second time; another count than asked; a dropped connection that comes back.
    """
    _check_class(cls, "criterion")
    for dead in (False, True):
        for scope in _scopes(cls, options):
            for density in (0.5, 0.1, 1.0):
                _check_update(cls, options, scope, density, dead=dead)


def _scopes(cls: type[Criterion], options: dict[str, Any]) -> list[Scope]:
    criterion: Criterion = _make(cls, options, "criterion")
    accepted: list[Scope] = []
    scopes: tuple[Scope, ...] = ("unit", "layer", "global")
    for scope in scopes:
        try:
            criterion.check(scope, None)
        except ConfigError:
            continue
        accepted.append(scope)
    assert criterion.scope in accepted, f"{cls.__name__} refuses its own scope {criterion.scope!r}"
    return accepted


def _check_update(cls: type[Criterion], options: dict[str, Any], scope: Scope, density: float, *, dead: bool) -> None:
    def choose(density: float, current: Mapping[str, Tensor]) -> ChosenMasks:
        network, layers, evidence = _toy_scene(dead=dead)
        criterion = _make(cls, options, "criterion")
        if "training" in criterion.needs and evidence.gradients is not None:
            evidence = attrs.evolve(evidence, traces=_toy_traces(criterion, layers, evidence.gradients))
        update = MaskUpdate(0.0, dict.fromkeys(layers, density), scope)
        try:
            prunable = PrunableNetwork(network, layers)
            return choose_masks(prunable, update, current, lambda: _make(cls, options, "criterion"), evidence, Seeds(1))
        except PrunekitError as error:
            raise AssertionError(f"{case}: {error}") from error

    case = f"{cls.__name__}, scope {scope}, density {density}" + (", dead neurons" if dead else "")
    chosen, again = choose(density, {}), choose(density, {})
    masks = chosen.masks
    for name, mask in masks.items():
        assert torch.equal(mask, again.masks[name]), f"{case}: layer {name!r} has another mask the second time"
    for name, weight in chosen.repaired.items():
        assert weight.isfinite().all(), f"{case}: reconstruct leaves layer {name!r} with infinite weights"
    for name, mask in choose(density / 2, masks).masks.items():
        assert not (mask & ~masks[name]).any(), f"{case}: a dropped connection of layer {name!r} comes back"


def _toy_traces(criterion: Criterion, layers: Mapping[str, LayerView], show: ShowBatches) -> dict[str, Tensor]:
    """Return what steps on a few batches would sum to, without taking them."""
    totals = no_traces(layers)
    for _ in show():
        for name, view in layers.items():
            assert view.weight.grad is not None
            weight, gradient = view.to_matrix(view.weight.detach()), view.to_matrix(view.weight.grad)
            term = criterion.trace(weight, gradient)
            assert term.shape == weight.shape, (
                f"{type(criterion).__name__}.trace returns {tuple(term.shape)} of a weight {tuple(weight.shape)}"
            )
            totals[name] += view.from_matrix(term)
    return totals


def _toy_scene(*, dead: bool) -> tuple[nn.Module, dict[str, LayerView], Evidence]:
    """Return the toy network and its evidence; with ``dead``, half of the neurons never fire."""
    task, seeds = ToyTask(), Seeds(0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = ToyNetwork()
    if dead:
        with torch.no_grad():
            for module in (network.conv_a, network.conv_b, network.hidden):
                assert module.bias is not None
                module.bias[::2] = -1e3

    def show_activations() -> Iterator[float]:
        for batch in task.batches("calibration", 0, seeds):
            with torch.no_grad():
                task.forward(network, batch)
            yield 1.0

    def show_gradients() -> Iterator[float]:
        for batch in task.batches("train", 0, seeds):
            network.zero_grad(set_to_none=True)
            task.loss(network, batch).backward()  # type: ignore[no-untyped-call]
            yield 1.0
        network.zero_grad(set_to_none=True)

    def losses() -> Iterator[Tensor]:
        network.eval()
        return (task.loss(network, batch) for batch in task.batches("train", 0, seeds))

    def forward(batch: Any) -> Any:
        network.eval()
        return task.forward(network, batch)

    whole = NetworkEvidence(network, losses, lambda: iter(task.batches("calibration", 0, seeds)), forward)
    evidence = Evidence(show_activations, show_gradients, task.activations(network), whole)
    return network, find_layers(network), evidence


def check_schedule(cls: type[Schedule], **options: Any) -> None:
    """Check that a schedule is pure, that its plans can be carried out, and that they end where they should.

    Args:
        cls: the class.
        options: its options.

    Raises:
        AssertionError: saying which structure fails, and how.
    """
    _check_class(cls, "schedule")
    layers = tuple(view.shape(name) for name, view in find_layers(ToyNetwork()).items())
    for text in ("hidden=1/4", "hidden=1/4 conv_b=0.5", "*=0.1"):
        structure = resolve_structure(text, [layer.name for layer in layers])
        request = PlanRequest(layers, structure, Budget(60, "steps"), Budget(20, "steps"))
        plan = _plan(cls, options, request)
        assert plan == _plan(cls, options, request), f"{cls.__name__} returns two plans for one request"
        wanted = {name: 1.0 if cls.ends_dense else density for name, density in request.structure}
        _check_end(cls, plan, layers, wanted, text)


def _plan(cls: type[Schedule], options: dict[str, Any], request: PlanRequest) -> Plan:
    schedule: Schedule = _make(cls, options, "schedule")
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


def check_task(cls: type[Task], view_of: ViewOf = core_view, **options: Any) -> None:
    """Check that a task keeps its contract; it trains one step and evaluates once.

    Args:
        cls: the class.
        view_of: gives the views of the layers, where the core does not know them.
        options: its options; choose them so that it is small.

    Raises:
        AssertionError: saying what is wrong.
    """
    _check_class(cls, "task")
    task: Task = _make(cls, options, "task")
    seeds = Seeds(0)
    assert "\n" not in task.setup(seeds), f"{cls.__name__}.setup returns more than one line"
    with torch.device("meta"):
        names = list(task.build_model().state_dict())
    model, same = _seeded(task), _seeded(task)
    assert names == list(model.state_dict()), f"{cls.__name__}.build_model differs on the meta device"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name]), f"{cls.__name__}: {name!r} differs with the same seed"
    network = task.deployed(model)
    views = find_layers(network, view_of)
    assert views, f"{cls.__name__}: the deployed network has no prunable layer"
    if task.structure:
        try:
            resolve_structure(task.structure, list(views), task.aliases)
        except ConfigError as error:
            _fail(f"{cls.__name__}.structure: {error}", error)
    for layer, module in task.activations(network).items():
        assert layer in views, f"{cls.__name__}.activations names {layer!r}, which is no prunable layer"
        network.get_submodule(module)
    _check_batches(task, seeds)
    _check_step(task, model, views, seeds)
    _check_evaluation(task, model)


def _seeded(task: Task) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return task.build_model()


def _check_batches(task: Task, seeds: Seeds) -> None:
    splits: tuple[Split, ...] = ("train", "calibration")
    for split in splits:
        first, second = task.batches(split, 0, seeds), task.batches(split, 0, seeds)
        assert len(first) > 0, f"task {task.name!r} has no {split} batch"
        last = len(first) - 1
        second[0]  # the order in which batches are asked for must not matter
        assert _equal(first[last], second[last]), f"task {task.name!r}: {split} batch {last} differs the second time"


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _check_step(task: Task, model: nn.Module, views: dict[str, LayerView], seeds: Seeds) -> None:
    model.train()
    optimizer = task.optimizer(model)
    loss = task.loss(model, task.batches("train", 0, seeds)[0])
    assert loss.dim() == 0, f"task {task.name!r}: the loss has shape {tuple(loss.shape)}, expected a scalar"
    assert loss.isfinite(), f"task {task.name!r}: the first loss is {float(loss.detach())}"
    loss.backward()  # type: ignore[no-untyped-call]
    for name, view in views.items():
        assert view.weight.grad is not None, f"task {task.name!r}: the loss does not reach layer {name!r}"
    optimizer.step()
    model.eval()
    with torch.no_grad():
        task.forward(model, task.batches("calibration", 0, seeds)[0])


def _check_evaluation(task: Task, model: nn.Module) -> None:
    model.eval()
    with torch.inference_mode():
        result = task.evaluate(model, torch.device("cpu"))
    known = ", ".join(result.metrics)
    assert result.primary in result.metrics, f"task {task.name!r}: primary {result.primary!r} is none of {known}"


def _check_class(cls: type, kind: Kind) -> None:
    problem = contract_problem(cls, kind)
    if problem:
        _fail(f"{cls.__name__} is no {kind}: {problem}")


def _make(cls: type, options: dict[str, Any], kind: Kind) -> Any:
    try:
        return construct(cls, options, kind, f"{kind} {cls.__name__}")
    except PrunekitError as error:
        _fail(str(error), error)


def _fail(message: str, cause: Exception | None = None) -> NoReturn:
    raise AssertionError(message) from cause
