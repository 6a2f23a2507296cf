"""The observe pass: criteria see batches layer by layer, the whole network, or traces of training.

The caller's evidence runs the network; this module listens with hooks. It must not know how batches are made.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from prunekit.contracts.criterion import Criterion, NetworkCriterion, Observation, Scene, observes
from prunekit.distributed.dtensor import full_tensor
from prunekit.errors import ConfigError, DataError, PluginError
from prunekit.layers.view import LayerView
from prunekit.pruning.evidence import Evidence, ShowBatches


@attrs.define
class _Record:
    """The tensors of one layer in one batch; a module that is called twice has two entries."""

    inputs: list[Tensor] = attrs.field(factory=list)
    outputs: list[Tensor] = attrs.field(factory=list)
    activations: list[Tensor] = attrs.field(factory=list)
    output_gradients: dict[int, Tensor] = attrs.field(factory=dict)


def observe(
    network: nn.Module,
    layers: Mapping[str, LayerView],
    criteria: Mapping[str, Criterion],
    masks: Mapping[str, Tensor],
    evidence: Evidence,
) -> None:
    """Give each layer's criterion the evidence that its ``needs`` name.

        criteria = {name: Wanda() for name in layers}
        observe(model, layers, criteria, {}, batch_evidence(model, batches))

    Args:
        network: the network that the layers are in.
        layers: layer name -> view.
        criteria: layer name -> fresh criterion, all of one class.
        masks: layer name -> current mask, bool ``[G, out, fan]``; layers without an entry are dense.
        evidence: where the criteria get what they need.

    Raises:
        ConfigError: evidence that a criterion needs is missing, or can be read only once.
        DataError: values that a criterion cannot use; the message names the layer.
        PluginError: a criterion of the whole network leaves out a layer.
    """
    _give_traces(layers, criteria, evidence.traces)
    if show := _batches_to_show(criteria, evidence):
        observe_batches(network, layers, criteria, evidence.activation_of, show)
    _survey(network, layers, criteria, masks, evidence)


def _give_traces(
    layers: Mapping[str, LayerView], criteria: Mapping[str, Criterion], traces: Mapping[str, Tensor] | None
) -> None:
    for name, criterion in criteria.items():
        if "training" not in criterion.needs:
            continue
        if traces is None:
            raise ConfigError(
                f"criterion {criterion.name!r} ranks by training steps, but no training is observed here; "
                f"prune within a run: prunekit run --criterion {criterion.name} --schedule gradual"
            )
        if name not in traces:
            raise ConfigError(
                f"criterion {criterion.name!r} ranks by training steps, but layer {name!r} is pruned before the first "
                "one; train before pruning, with a longer stage or a schedule such as gradual"
            )
        criterion.take_trace(layers[name].to_matrix(full_tensor(traces[name])))


def _batches_to_show(criteria: Mapping[str, Criterion], evidence: Evidence) -> ShowBatches | None:
    """Return what shows the batches that criteria need; ``None`` if they observe no batches."""
    if not any(observes(criterion) for criterion in criteria.values()):
        return None
    needs = {need for criterion in criteria.values() for need in criterion.needs}
    show = evidence.gradients if "gradients" in needs else evidence.activations
    if show is None:
        name = next(iter(criteria.values())).name
        missing = "a loss and training batches" if "gradients" in needs else "batches to observe"
        raise ConfigError(f"criterion {name!r} needs {' and '.join(sorted(needs))}: give it {missing}")
    return show


def observe_batches(
    network: nn.Module,
    layers: Mapping[str, LayerView],
    criteria: Mapping[str, Criterion],
    activation_of: Mapping[str, str],
    show: ShowBatches,
) -> None:
    """Show all batches to all criteria, and once more to those that request another pass.

    Args:
        network: the network that the layers are in.
        layers: layer name -> view.
        criteria: layer name -> criterion.
        activation_of: layer name -> module whose output is the layer's activation.
        show: runs the network on the batches.

    Raises:
        ConfigError: no batch calls one of the layers; there are no batches for a second pass.
        DataError: values that a criterion cannot use; the message names the layer.
    """
    waiting = dict(criteria)
    while waiting:
        shown = _show_once(network, {name: layers[name] for name in waiting}, waiting, activation_of, show)
        waiting = {name: criterion for name, criterion in waiting.items() if _wants_more(criterion, name)}
        if waiting and shown == 0:
            raise ConfigError("the batches can be read only once, but the criterion needs several passes; give a list")


def _show_once(
    network: nn.Module,
    layers: Mapping[str, LayerView],
    criteria: Mapping[str, Criterion],
    activation_of: Mapping[str, str],
    show: ShowBatches,
) -> int:
    """Show all batches to all criteria once, and return the number of batches."""
    count = 0
    uncalled = set(layers)
    with _listening(network, layers, activation_of) as records:
        for share in show():
            count += 1
            uncalled = {name for name in uncalled if not records[name].outputs}
            for name, view in layers.items():
                for seen in _observations(view, records[name], share, with_activation=name in activation_of):
                    _show(criteria[name], name, seen)
                records[name] = _Record()
    if count and uncalled:
        raise ConfigError(
            f"no batch calls layer {min(uncalled)!r}, so it cannot be observed; "
            "exclude it, or use a criterion that needs only weights, such as 'magnitude'"
        )
    return count


def _show(criterion: Criterion, layer: str, seen: Observation) -> None:
    with torch.no_grad(), _naming(layer):
        criterion.observe(seen)


def _wants_more(criterion: Criterion, layer: str) -> bool:
    with _naming(layer):
        return criterion.end_pass()


@contextmanager
def _naming(layer: str) -> Iterator[None]:
    """Add the layer's name to data errors."""
    try:
        yield
    except DataError as error:
        raise DataError(f"layer {layer!r}: {error}") from error


def _survey(
    network: nn.Module,
    layers: Mapping[str, LayerView],
    criteria: Mapping[str, Criterion],
    masks: Mapping[str, Tensor],
    evidence: Evidence,
) -> None:
    """Let one criterion survey the whole network, and give each layer's criterion the scores of its layer."""
    surveyors = {name: criterion for name, criterion in criteria.items() if isinstance(criterion, NetworkCriterion)}
    if not surveyors:
        return
    first = next(iter(surveyors.values()))
    scene = _scene(network, layers, masks, evidence, first.name)
    with torch.enable_grad():
        found = first.survey(scene)
    missing = ", ".join(map(repr, layers.keys() - found.keys()))
    if missing:
        raise PluginError(f"criterion {first.name!r} found no scores of layer {missing}")
    for name, criterion in surveyors.items():
        criterion.found = found[name].detach()


def _scene(
    network: nn.Module,
    layers: Mapping[str, LayerView],
    masks: Mapping[str, Tensor],
    evidence: Evidence,
    criterion: str,
) -> Scene:
    whole = evidence.network
    if whole is None:
        raise ConfigError(f"criterion {criterion!r} looks at the whole network: give it batches to run")
    losses = _repeatable(whole.losses, f"criterion {criterion!r} needs losses: give it a loss and training batches")
    batches = _repeatable(whole.batches, f"criterion {criterion!r} runs the network: give it batches")
    return Scene(whole.model, network, layers, masks, losses, batches, whole.forward)


def _repeatable(source: Callable[[], Iterator[Any]] | None, missing: str) -> Callable[[], Iterator[Any]]:
    """Return a source that raises an error if it is missing, or empty, as a generator is when read again."""

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


def summed_gradients(layers: Mapping[str, LayerView], show: ShowBatches) -> dict[str, Tensor]:
    """Return layer -> loss gradient summed over the batches, float32, in the weight's shape and sharded like it."""
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
            # Copies, because later modules may work in place: an activation function, a residual connection.
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
    gradient = weight.grad if weight.is_leaf else None  # torch keeps no gradient of a computed weight
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
