"""The criterion "grasp": keep the weights that preserve gradient flow, by a Hessian-gradient product."""

from collections.abc import Iterable, Mapping

import attrs
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunekit.contracts.criterion import Criterion, NetworkCriterion, Scene
from prunekit.contracts.markers import hookimpl
from prunekit.contracts.sums import add
from prunekit.distributed.ranks import sum_over_ranks
from prunekit.errors import ConfigError, DataError


@attrs.define(eq=False)
class Grasp(NetworkCriterion):
    """Keep the connections that preserve the flow of the gradient (GraSP: Wang, Zhang, Grosse, ICLR 2020).

    To first order, removing a weight changes the squared norm of the gradient by twice the paper's
    ``S = -w * (H g)``, with H the Hessian and g the gradient of the loss. The paper removes the weights with the
    largest S, because this reduces the gradient flow least. Here higher = keep, so the score is ``w * (H g)``.

    g and H are those of the loss summed over the training batches, in evaluation mode, with respect to the weights that
    the update prunes. Dropped weights are fixed, so their entries of g are 0. The paper prunes before training, divides
    the network's outputs by a temperature of 200 (the loss of a task has none), and draws the same number of samples
    from each class.
    """

    name = "grasp"

    def survey(self, scene: Scene) -> Mapping[str, Tensor]:
        """Return ``w * (H g)`` of each layer: float64 ``[G, out, fan]``.

        Raises:
            ConfigError: the scene has no losses, or a layer does not require a gradient, or no loss depends on it.
            DataError: a product is NaN or infinite.
        """
        weights = {name: view.weight for name, view in scene.layers.items()}
        for name, weight in weights.items():
            if not weight.requires_grad:
                raise ConfigError(
                    f"layer {name!r} does not require a gradient; call requires_grad_() on its weight, or exclude it"
                )
        # Fused attention has no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            flow = _summed(_gradients(loss, weights) for loss in scene.losses())
            _check_reached(weights, flow)
            for part in flow.values():
                sum_over_ranks(part)
            for name, mask in scene.masks.items():
                flow[name] *= scene.layers[name].from_matrix(mask)
            products = _summed(_products(loss, weights, flow) for loss in scene.losses())
        scores = {}
        for name, view in scene.layers.items():
            product = products.get(name, torch.zeros_like(flow[name]))
            scores[name] = view.to_matrix(weights[name].detach() * sum_over_ranks(product))
            if not bool(scores[name].isfinite().all()):
                raise DataError(
                    f"layer {name!r}: the product of Hessian and gradient is NaN or infinite; check the data and the "
                    "weights"
                )
        return scores


def _gradients(loss: Tensor, weights: Mapping[str, Tensor], *, create_graph: bool = False) -> dict[str, Tensor]:
    """Return the gradients of the weights that a loss depends on."""
    found = torch.autograd.grad(loss, list(weights.values()), create_graph=create_graph, allow_unused=True)
    return {name: part for name, part in zip(weights, found, strict=True) if part is not None}


def _products(loss: Tensor, weights: Mapping[str, Tensor], flow: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the product of a loss's Hessian with ``flow``: the derivative of its gradient along it."""
    gradients = _gradients(loss, weights, create_graph=True)
    along = [(gradient * flow[name]).sum() for name, gradient in gradients.items() if gradient.requires_grad]
    # A loss that is linear in the weights has no second derivative.
    return _gradients(torch.stack(along).sum(), weights) if along else {}


def _summed(terms: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Sum over batches, layer by layer, in double precision."""
    sums: dict[str, Tensor] = {}
    for term in terms:
        for name, part in term.items():
            sums[name] = add(sums.get(name), part.double())
    return sums


def _check_reached(weights: Mapping[str, Tensor], flow: Mapping[str, Tensor]) -> None:
    missing = [name for name in weights if name not in flow]
    if missing:
        raise ConfigError(f"no loss depends on layer {missing[0]!r}; exclude it")


@hookimpl
def prunekit_criteria() -> Iterable[type[Criterion]]:
    """Return this module's criterion."""
    return [Grasp]
