"""The contract of an export format: write a pruned network as one file, and read the file to check it.

This module must not know any format.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
from torch import Tensor, nn

from prunekit.layers.lookup import parameter_name
from prunekit.layers.samples import Samples
from prunekit.layers.torch_views import core_view
from prunekit.layers.view import LayerView, ViewOf
from prunekit.masks.masks import Masks
from prunekit.masks.matching import match

Run = Callable[[Samples], tuple[Tensor, ...]]
"""Runs a network that was read from a file, and returns all its output tensors."""


@attrs.frozen(eq=False)
class PrunedNetwork:
    """A pruned network with its masks, views and sample inputs.

    Attributes:
        network: the deployed network, in evaluation mode, on the CPU, without gradients; dropped weights are exactly 0.
        masks: parameter name in the network -> ``torch.bool``, True = keep; parameters without a mask are dense.
        views: its prunable layers by name, from input to output.
        samples: inputs of the network.
        name: the name that the user gave: a run folder or a model.
        view_of: returns the view of a layer.
    """

    network: nn.Module
    masks: Masks
    views: dict[str, LayerView]
    samples: Samples
    name: str
    view_of: ViewOf = core_view

    def outputs(self, samples: Samples | None = None) -> tuple[Tensor, ...]:
        """Run the network on ``samples`` (default: its own) and return its output tensors."""
        return (samples or self.samples).through(self.network)

    def runner(self, weights: Mapping[str, Tensor]) -> Run:
        """Return a function that runs a copy of the network with other weights, for use in ``ExportFormat.reopen``.

        Args:
            weights: a complete ``state_dict`` of the network.
        """
        network = copy.deepcopy(self.network)
        network.load_state_dict(weights)
        return lambda samples: samples.through(network)

    def layer_masks(self) -> dict[str, Tensor]:
        """Return layer -> mask in the shape of its weight, for all prunable layers with a mask."""
        matched = match(self.masks.tensors, self.network)
        by_weight = {id(parameter): mask for parameter, mask in matched.values()}
        found = {}
        for name, view in self.views.items():
            # By name too, since a parametrized weight is a new tensor at each access.
            mask = self.masks.tensors.get(parameter_name(name, view), by_weight.get(id(view.weight)))
            if mask is not None:
                found[name] = mask
        return found

    def __str__(self) -> str:
        kept = {name: int(mask.sum()) for name, mask in self.layer_masks().items()}
        weights = {name: view.weight.numel() for name, view in self.views.items()}
        total, left = sum(weights.values()), sum((weights | kept).values())
        density = f" (density {left / total:.4g})" if total else ""
        return f"{self.name}: {type(self.network).__name__}, {left:,} of {total:,} prunable weights left{density}"


@attrs.frozen
class Encoded:
    """The bytes of a file, and notes for the user, one line each."""

    data: bytes
    notes: tuple[str, ...] = ()


@attrs.frozen
class ExportFormat:
    """One format, as ``prunekit_export_formats`` returns it.

        ExportFormat("npz", "Arrays by parameter name, for NumPy.", encode, reopen, 1e-6, "numpy.load({path})")

    ``prunekit export`` writes the bytes of ``encode`` to a temporary file, runs what ``reopen`` reads from it, and
    renames the file only if the outputs agree with those of the masked network.

    Attributes:
        name: the value of ``--to``.
        summary: one line for ``prunekit list``.
        encode: returns the bytes of the file of a pruned network.
        reopen: reads the file as its users do, given the path and the pruned network, and returns a function that
            runs it.
        tolerance: largest difference from the outputs of the masked network, relative to outputs above 1; see
            ``prunekit.deployment.output_check``.
        load: one line of code that loads the file; ``{path}`` is its quoted path.
        form: returns the network that ``prunekit bench`` times against the dense one; ``None`` if there is none.
    """

    name: str
    summary: str
    encode: Callable[[PrunedNetwork], Encoded]
    reopen: Callable[[Path, PrunedNetwork], Run]
    tolerance: float
    load: str
    form: Callable[[PrunedNetwork], nn.Module] | None = None
