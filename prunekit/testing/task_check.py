"""The check of a task, by one training step and one evaluation."""

from typing import Any

import torch
from torch import Tensor, nn

from prunekit.contracts.seeds import Seeds
from prunekit.contracts.task import Split, Task
from prunekit.errors import ConfigError
from prunekit.layers.lookup import find_layers
from prunekit.layers.torch_views import core_view
from prunekit.layers.view import LayerView, ViewOf
from prunekit.pruning.structure_text import resolve_structure
from prunekit.testing.construction import check_class, fail, make


def check_task(cls: type[Task], view_of: ViewOf = core_view, **options: Any) -> None:
    """Check that a task keeps its contract: one training step, one evaluation.

        check_task(Digits, width=8)

    Args:
        cls: the task class.
        view_of: returns the layer views of a module, for a network with layers of a plugin.
        options: its options; choose small ones.

    Raises:
        AssertionError: the message says what is wrong.
    """
    check_class(cls, "task")
    task: Task = make(cls, options, "task")
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
            fail(f"{cls.__name__}.structure: {error}", error)
    for layer, module in task.activations(network).items():
        assert layer in views, f"{cls.__name__}.activations names {layer!r}, which is not a prunable layer"
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
        second[0]  # the order in which batches are read must not matter
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
    assert result.primary in result.metrics, (
        f"task {task.name!r}: primary {result.primary!r} is not one of its metrics ({known})"
    )
