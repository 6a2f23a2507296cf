"""The check of a criterion, by mask updates of the toy network."""

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from prunekit.contracts.criterion import Criterion
from prunekit.contracts.schedule import MaskUpdate
from prunekit.contracts.seeds import Seeds
from prunekit.errors import ConfigError, PrunekitError
from prunekit.layers.lookup import find_layers
from prunekit.layers.view import LayerView
from prunekit.masks.selection import Scope
from prunekit.pruning.evidence import Evidence, NetworkEvidence, ShowBatches
from prunekit.pruning.training_traces import no_traces
from prunekit.pruning.update import ChosenMasks, PrunableNetwork, choose_masks
from prunekit.testing.construction import check_class, make
from prunekit.testing.toy_task import ToyNetwork, ToyTask


def check_criterion(cls: type[Criterion], **options: Any) -> None:
    """Check that a criterion keeps its contract on linear layers, convolutions and grouped convolutions.

        check_criterion(Sensitivity, power=2)

    Args:
        cls: the criterion class.
        options: its options.

    Raises:
        AssertionError: the criterion cannot be made, gives scores of a wrong shape or NaN (with dead neurons
            too), other masks the second time or another number of connections, or lets a dropped connection come back.
    """
    check_class(cls, "criterion")
    for dead in (False, True):
        for scope in _scopes(cls, options):
            for density in (0.5, 0.1, 1.0):
                _check_update(cls, options, scope, density, dead=dead)


def _scopes(cls: type[Criterion], options: dict[str, Any]) -> list[Scope]:
    criterion: Criterion = make(cls, options, "criterion")
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
        criterion = make(cls, options, "criterion")
        if "training" in criterion.needs and evidence.gradients is not None:
            evidence = attrs.evolve(evidence, traces=_toy_traces(criterion, layers, evidence.gradients))
        update = MaskUpdate(0.0, dict.fromkeys(layers, density), scope)
        try:
            prunable = PrunableNetwork(network, layers)
            return choose_masks(prunable, update, current, lambda: make(cls, options, "criterion"), evidence, Seeds(1))
        except PrunekitError as error:
            raise AssertionError(f"{case}: {error}") from error

    case = f"{cls.__name__}, scope {scope}, density {density}" + (", dead neurons" if dead else "")
    chosen, again = choose(density, {}), choose(density, {})
    masks = chosen.masks
    for name, mask in masks.items():
        assert torch.equal(mask, again.masks[name]), f"{case}: layer {name!r} has another mask the second time"
    for name, weight in chosen.repaired.items():
        assert weight.isfinite().all(), f"{case}: reconstruct returns NaN or infinite weights for layer {name!r}"
    for name, mask in choose(density / 2, masks).masks.items():
        assert not (mask & ~masks[name]).any(), f"{case}: a dropped connection of layer {name!r} comes back"


def _toy_traces(criterion: Criterion, layers: Mapping[str, LayerView], show: ShowBatches) -> dict[str, Tensor]:
    """Return the sums of traces of steps on a few batches, without taking these steps."""
    totals = no_traces(layers)
    for _ in show():
        for name, view in layers.items():
            assert view.weight.grad is not None
            weight, gradient = view.to_matrix(view.weight.detach()), view.to_matrix(view.weight.grad)
            term = criterion.trace(weight, gradient)
            assert term.shape == weight.shape, (
                f"{type(criterion).__name__}.trace returns {tuple(term.shape)} for a weight {tuple(weight.shape)}"
            )
            totals[name] += view.from_matrix(term)
    return totals


def _toy_scene(*, dead: bool) -> tuple[nn.Module, dict[str, LayerView], Evidence]:
    """Return the toy network, its layers and evidence; with ``dead``, half of the neurons never fire."""
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
