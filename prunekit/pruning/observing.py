"""Shows layers to criteria: records what batches bring to and take from each layer.

The caller runs the network; this module only listens, and it must not know how batches are made.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from prunekit.contracts.criterion import Criterion, NetworkCriterion, Observation, Scene
from prunekit.distributed.dtensor import full_tensor
from prunekit.errors import ConfigError, DataError, PluginError
from prunekit.layers.view import LayerView

Show = Callable[[], Iterator[float]]
"""Runs the network on one batch after another: forward, and backward where gradients are wanted; each batch ends in a
``yield`` of the fraction of it that was shown here: 1.0, but where several ranks each show their part of it."""


@attrs.define
class _Record:
    """What one layer saw during one batch; a module that is called twice has two entries."""

    inputs: list[Tensor] = attrs.field(factory=list)
    outputs: list[Tensor] = attrs.field(factory=list)
    activations: list[Tensor] = attrs.field(factory=list)
    output_gradients: dict[int, Tensor] = attrs.field(factory=dict)


@attrs.frozen
class Whole:
    """How to run the network as a whole; see ``prunekit.contracts.criterion.Scene``.

    Attributes:
        model: what batches run through.
        losses: yields losses of training batches with their graphs. ``None``: not to be had.
        batches: yields calibration batches. ``None``: not to be had.
        forward: runs the model on such a batch.
    """

    model: nn.Module
    losses: Callable[[], Iterator[Tensor]] | None
    batches: Callable[[], Iterator[Any]] | None
    forward: Callable[[Any], Any]


@attrs.frozen
class Evidence:
    """Where criteria get what they need.

    Attributes:
        activations: shows the calibration set, forward only.
        gradients: shows training batches, forward and backward of the loss; the gradients must not be
            masked. ``None``: not to be had.
        activation_of: layer -> module whose output is the layer's activation, in the same network.
        traces: layer -> sum of the criterion's ``trace`` over training steps, of the weight's shape; ``None``: nobody
            trains here.
        whole: runs the network as a whole. ``None``: not to be had.
    """

    activations: Show | None
    gradients: Show | None = None
    activation_of: Mapping[str, str] = attrs.field(factory=dict)
    whole: Whole | None = None
    traces: Mapping[str, Tensor] | None = None


def observe(
    network: nn.Module,
    layers: Mapping[str, LayerView],
    criteria: Mapping[str, Criterion],
    evidence: Evidence,
    show: Show,
) -> None:
    """Show all batches to all criteria, again for as long as one of them asks for another pass.

    Raises:
        ConfigError: when batches were shown, but a layer took no part in any of them; when there are none
            for a second pass.
        DataError: what a criterion cannot work with, naming the layer.
    """
    waiting = dict(criteria)
    while waiting:
        number = -1
        watched = {name: layers[name] for name in waiting}
        unseen: set[str] = set()
        with _listening(network, watched, evidence.activation_of) as records:
            for number, share in enumerate(show()):
                unseen = {name for name in (unseen if number else watched) if not records[name].outputs}
                for name, view in watched.items():
                    with_activation = name in evidence.activation_of
                    for seen in _observations(view, records[name], share, with_activation=with_activation):
                        _take_in(waiting[name], name, seen)
                    records[name] = _Record()
        if unseen:
            raise ConfigError(
                f"layer {min(unseen)!r} was called by no batch, so nothing of it can be observed; "
                "leave it out, or take a criterion that needs weights only, such as 'magnitude'"
            )
        waiting = {name: criterion for name, criterion in waiting.items() if _wants_more(criterion, name)}
        if waiting and number < 0:
            raise ConfigError(
                "the batches can be read only once, but the criterion works in several passes; give a list"
            )


def survey(
    network: nn.Module,
    layers: Mapping[str, LayerView],
    masks: Mapping[str, Tensor],
    criterion: NetworkCriterion,
    evidence: Evidence,
) -> Mapping[str, Tensor]:
    """Let a criterion look at the network as a whole and return the scores it finds, by layer.

    Raises:
        ConfigError: when it asks for data that there is none of, or that can be read only once.
        PluginError: when it leaves a layer out.
    """
    whole = evidence.whole
    if whole is None:
        raise ConfigError(f"criterion {criterion.name!r} looks at the whole network: give it batches to run")
    name = criterion.name
    losses = _again_and_again(whole.losses, f"criterion {name!r} needs losses: give it a loss and training batches")
    batches = _again_and_again(whole.batches, f"criterion {name!r} runs the network: give it batches")
    with torch.enable_grad():
        found = criterion.survey(Scene(whole.model, network, layers, masks, losses, batches, whole.forward))
    missing = ", ".join(map(repr, layers.keys() - found.keys()))
    if missing:
        raise PluginError(f"criterion {name!r} found no scores of layer {missing}")
    return {layer: found[layer].detach() for layer in layers}


def _again_and_again(source: Callable[[], Iterator[Any]] | None, missing: str) -> Callable[[], Iterator[Any]]:
    """Refuse a source that is not there, and one that is empty, which a generator is the second time."""

    def read() -> Iterator[Any]:
        if source is None:
            raise ConfigError(missing)
        empty = True
        for item in source():
            empty = False
            yield item
        if empty:
            raise ConfigError("there are no batches, or they can be read only once; give a list")

    return read


def _take_in(criterion: Criterion, layer: str, seen: Observation) -> None:
    with torch.no_grad(), _naming(layer):
        criterion.observe(seen)


def _wants_more(criterion: Criterion, layer: str) -> bool:
    with _naming(layer):
        return criterion.end_pass()


@contextmanager
def _naming(layer: str) -> Iterator[None]:
    """Say in errors of the data which layer it was."""
    try:
        yield
    except DataError as error:
        raise DataError(f"layer {layer!r}: {error}") from error


def summed_gradients(layers: Mapping[str, LayerView], show: Show) -> dict[str, Tensor]:
    """Return the loss gradient of each layer's weight summed over the batches, float32, lying as the weight does."""
    sums: dict[str, Tensor] = {}
    for _ in show():
        for name, view in layers.items():
            gradient = view.weight.grad
            if gradient is not None:
                term = gradient.detach().float()
                sums[name] = sums[name] + term if name in sums else term.clone()
    return sums


@contextmanager
def _listening(
    network: nn.Module, layers: Mapping[str, LayerView], activation_of: Mapping[str, str]
) -> Iterator[dict[str, _Record]]:
    records = {name: _Record() for name in layers}

    def layer_hook(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
            record = records[name]
            index = len(record.outputs)
            # Copies, since what comes behind may work in place: an activation function, a shortcut.
            record.inputs.append(inputs[0].detach().clone())
            record.outputs.append(outputs.detach().clone())
            if outputs.requires_grad:
                outputs.register_hook(lambda gradient: record.output_gradients.__setitem__(index, gradient.detach()))

        return hook

    def activation_hook(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: tuple[Any, ...], outputs: Any) -> None:
            records[name].activations.append(outputs.detach())

        return hook

    with ExitStack() as hooks:
        for name, view in layers.items():
            hooks.callback(view.module.register_forward_hook(layer_hook(name)).remove)
            if name in activation_of:
                module = network.get_submodule(activation_of[name])
                hooks.callback(module.register_forward_hook(activation_hook(name)).remove)
        yield records


def _observations(view: LayerView, record: _Record, share: float, *, with_activation: bool) -> Iterable[Observation]:
    weight = view.weight
    gradient = weight.grad if weight.is_leaf else None  # of a computed weight torch keeps none
    matrix = None if gradient is None else view.to_matrix(full_tensor(gradient))
    activations = record.activations if with_activation else record.outputs
    for index, (inputs, outputs, activation) in enumerate(zip(record.inputs, record.outputs, activations, strict=True)):
        yield Observation(
            layer=view,
            inputs=inputs,
            outputs=outputs,
            activations=activation,
            output_gradient=record.output_gradients.get(index),
            weight_gradient=matrix,
            call=index,
            share=share,
        )
