"""The criterion "synflow": the flow of ones through absolute weights. It needs the shape of an input, and no data."""

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
    ones, and R is the sum of what comes out; the score is ``|w| * dR / d|w|``, the score of the paper.
    The network is in evaluation mode, and stays as it is: the other values are only lent to it. Of the
    calibration batch only the shape matters; entries that are no floating-point numbers (labels, tokens)
    are taken as they are.

    The paper prunes before training in 100 rounds, to densities that fall exponentially, and scores anew in each: that
    keeps layers from being emptied, and is the schedule's part.
    """

    name = "synflow"

    def survey(self, scene: Scene) -> Mapping[str, Tensor]:
        """Return ``|w| * dR / d|w|`` of each layer: float64 ``[G, out, fan]``.

        Raises:
            ConfigError: without a batch; when what comes out does not depend on a layer.
            DataError: when a score is beyond double precision.
        """
        batch = _ones(next(scene.batches()))
        state = {name: _absolute(tensor) for name, tensor in scene.model.named_buffers()}
        lent: dict[Tensor, Tensor] = {weight: _absolute(weight).requires_grad_() for weight in scene.model.parameters()}
        state |= {name: lent[parameter] for name, parameter in scene.model.named_parameters()}
        stage = _Stage(scene.model, scene.forward)
        outputs = torch.func.functional_call(stage, {f"model.{name}": value for name, value in state.items()}, (batch,))
        weights = {name: lent[view.weight] for name, view in scene.layers.items()}
        flow = torch.stack([output.double().sum() for output in _floating(outputs)]).sum()
        gradients = torch.autograd.grad(flow, list(weights.values()), allow_unused=True)
        scores = {}
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is None:
                raise ConfigError(f"what comes out of the network does not depend on layer {name!r}; leave it out")
            scores[name] = scene.layers[name].to_matrix(weight.detach() * gradient)
            if not bool(scores[name].isfinite().all()):
                raise DataError(f"layer {name!r}: the flow through it is beyond double precision")
        return scores


class _Stage(nn.Module):
    """Makes a call of a function that runs a model one of a module, so that values can be lent to the model."""

    def __init__(self, model: nn.Module, run: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, batch: Any) -> Any:
        return self.run(batch)


def _absolute(tensor: Tensor) -> Tensor:
    """Return a copy of absolute values in double precision; of what is no floating-point tensor a plain copy."""
    return tensor.detach().double().abs() if tensor.is_floating_point() else tensor.detach().clone()


def _ones(batch: Any) -> Any:
    """Return a batch of one sample, all its floating-point numbers 1.0 in double precision."""
    if isinstance(batch, Tensor):
        first = batch[:1] if batch.dim() else batch
        return torch.ones_like(first, dtype=torch.float64) if batch.is_floating_point() else first
    if isinstance(batch, tuple | list):
        return type(batch)([_ones(part) for part in batch])
    if isinstance(batch, Mapping):
        return {key: _ones(part) for key, part in batch.items()}
    return batch


def _floating(outputs: Any) -> list[Tensor]:
    """Return the floating-point tensors in what a network gave."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, tuple | list) else ()
    return [tensor for part in parts for tensor in _floating(part)]


@hookimpl
def prunekit_criteria() -> Iterable[type[Criterion]]:
    """Bring the criterion."""
    return [SynFlow]
