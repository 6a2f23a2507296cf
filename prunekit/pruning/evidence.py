"""The evidence that criteria rank by: batches shown layer by layer, runs of the whole network, traces of training.

It must not know criteria, masks or the training loop.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, nn

ShowBatches = Callable[[], Iterator[float]]
"""Runs the network on one batch after another: forward, and backward if gradients are wanted. After each batch it
yields the fraction of the batch that this rank has shown: 1.0 in a single process."""

Forward = Callable[[nn.Module, Any], Any]
"""Runs a model on a batch."""

Loss = Callable[[nn.Module, Any], Tensor]
"""Returns the scalar loss of a model on a batch, with its graph."""


@attrs.frozen
class NetworkEvidence:
    """How a criterion of the whole network runs it; see ``prunekit.contracts.criterion.Scene``.

    Attributes:
        model: the module that takes batches.
        losses: yields losses of training batches with their graphs; ``None``: unavailable.
        batches: yields calibration batches; ``None``: unavailable.
        forward: runs the model on a calibration batch.
    """

    model: nn.Module
    losses: Callable[[], Iterator[Tensor]] | None
    batches: Callable[[], Iterator[Any]] | None
    forward: Callable[[Any], Any]


@attrs.frozen
class Evidence:
    """Where criteria get what their ``needs`` name.

    Attributes:
        activations: shows the calibration set, forward only; ``None``: unavailable.
        gradients: shows training batches, forward and backward of the loss, with unmasked gradients; ``None``:
            unavailable.
        activation_of: layer -> module in the same network whose output is the layer's activation.
        network: runs the network as a whole; ``None``: unavailable.
        traces: layer -> sum of the criterion's ``trace`` over training steps, in the weight's shape; ``None``: no
            training is observed.
    """

    activations: ShowBatches | None
    gradients: ShowBatches | None = None
    activation_of: Mapping[str, str] = attrs.field(factory=dict)
    network: NetworkEvidence | None = None
    traces: Mapping[str, Tensor] | None = None


def batch_evidence(
    model: nn.Module,
    batches: Iterable[Any] | None,
    *,
    loss: Loss | None = None,
    forward: Forward | None = None,
    activation_of: Mapping[str, str] | None = None,
) -> Evidence:
    """Return the evidence that batches give about a model.

        evidence = batch_evidence(model, loader, loss=lambda model, batch: cross_entropy(model(batch[0]), batch[1]))

    Args:
        model: run as it is; its ``.grad`` is overwritten, see ``undisturbed``.
        batches: read once for each pass; ``None``: there is no evidence.
        loss: without it, there are no gradients.
        forward: ``None``: ``run_first_entry``.
        activation_of: layer -> module whose output is the layer's activation.
    """
    activation_of = activation_of or {}
    if batches is None:
        return Evidence(None, None, activation_of)
    run = partial(forward or run_first_entry, model)

    def show_activations() -> Iterator[float]:
        for batch in batches:
            with torch.no_grad():
                run(batch)
            yield 1.0

    def losses(of: Loss) -> Iterator[Tensor]:
        return (of(model, batch) for batch in batches)

    def show_gradients(of: Loss) -> Iterator[float]:
        for batch in batches:
            for parameter in model.parameters():
                parameter.grad = None
            with torch.enable_grad():
                # torch's stubs leave backward untyped.
                of(model, batch).backward()  # type: ignore[no-untyped-call]
            yield 1.0

    network = NetworkEvidence(model, partial(losses, loss) if loss else None, lambda: iter(batches), run)
    return Evidence(show_activations, partial(show_gradients, loss) if loss else None, activation_of, network)


def run_first_entry(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch, or on the first entry of a batch that is a tuple or list: (inputs, labels)."""
    return model(batch[0] if isinstance(batch, tuple | list) else batch)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and restore the mode of each module and each ``.grad`` afterwards."""
    training = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
