"""The criterion "synflow": the flow of ones through absolute weights. It needs the shape of an input, but no data."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from prunekit.contracts.criterion import Criterion, NetworkCriterion, Scene
from prunekit.contracts.markers import hookimpl
from prunekit.errors import ConfigError, DataError


@attrs.define(eq=False)
class SynFlow(NetworkCriterion):
    """Keep the connections that carry most of a synthetic flow (SynFlow: Tanaka et al., NeurIPS 2020).

    All parameters and buffers are replaced by their absolute values in double precision, the input is one sample of
    ones, and R is the sum of the outputs; the score is ``|w| * dR / d|w|``, as in the paper. The network is in
    evaluation mode and does not change: the other values replace its own only for the call. Only the shape of the
    calibration batch matters; entries that are not floating-point (labels, tokens) are used as they are.

    The paper prunes before training in 100 rounds, to exponentially falling densities, with new scores in each round,
    so that no layer is emptied. These rounds are set in the schedule: ``one-shot`` with ``when="before"`` and
    ``rounds=100``.
    """

    name = "synflow"

    def survey(self, scene: Scene) -> Mapping[str, Tensor]:
        """Return ``|w| * dR / d|w|`` of each layer: float64 ``[G, out, fan]``.

        Raises:
            ConfigError: the scene has no batch, or the outputs do not depend on a layer.
            DataError: a score overflows double precision.
        """
        batch = _ones(next(scene.batches()))
        state = {name: _absolute(tensor) for name, tensor in scene.model.named_buffers()}
        absolute: dict[Tensor, Tensor] = {
            weight: _absolute(weight).requires_grad_() for weight in scene.model.parameters()
        }
        state |= {name: absolute[parameter] for name, parameter in scene.model.named_parameters()}
        call = _Call(scene.model, scene.forward)
        outputs = torch.func.functional_call(call, {f"model.{name}": value for name, value in state.items()}, (batch,))
        weights = {name: absolute[view.weight] for name, view in scene.layers.items()}
        flow = torch.stack([output.double().sum() for output in _floating(outputs)]).sum()
        gradients = torch.autograd.grad(flow, list(weights.values()), allow_unused=True)
        scores = {}
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is None:
                raise ConfigError(f"the network's output does not depend on layer {name!r}; exclude it")
            scores[name] = scene.layers[name].to_matrix(weight.detach() * gradient)
            if not bool(scores[name].isfinite().all()):
                raise DataError(f"layer {name!r}: the flow through it overflows double precision; exclude it")
        return scores


class _Call(nn.Module):
    """A module that calls a function which runs a model, so that ``functional_call`` can replace the model's values."""

    def __init__(self, model: nn.Module, run: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, batch: Any) -> Any:
        return self.run(batch)


def _absolute(tensor: Tensor) -> Tensor:
    """Return a copy with absolute values in double precision; tensors that are not floating-point are only copied."""
    return tensor.detach().double().abs() if tensor.is_floating_point() else tensor.detach().clone()


def _ones(batch: Any) -> Any:
    """Return a batch of one sample whose floating-point numbers are all 1.0, in double precision."""
    if isinstance(batch, Tensor):
        first = batch[:1] if batch.dim() else batch
        return torch.ones_like(first, dtype=torch.float64) if batch.is_floating_point() else first
    if isinstance(batch, tuple | list):
        return type(batch)([_ones(part) for part in batch])
    if isinstance(batch, Mapping):
        return {key: _ones(part) for key, part in batch.items()}
    return batch


def _floating(outputs: Any) -> list[Tensor]:
    """Return the floating-point tensors in a network's output."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, tuple | list) else ()
    return [tensor for part in parts for tensor in _floating(part)]


@hookimpl
def prunekit_criteria() -> Iterable[type[Criterion]]:
    """Return this module's criterion."""
    return [SynFlow]
