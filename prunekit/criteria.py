"""The contract of a selection criterion: which connections of one layer to keep.

A criterion is an attrs class; its constructor's arguments are its options. The engine makes a fresh
object for each layer and each mask update and calls, in this order: ``observe`` for every batch (only when
it needs data), ``end_pass`` after the last one, ``take_trace`` (only when it needs training), ``score``,
``select``, ``reconstruct``.
It must not know the task, the schedule or the training loop.
"""

import abc
from typing import ClassVar, Literal

import attrs
import torch
from torch import Tensor

from prunekit.layers import LayerView
from prunekit.selection import Pattern, Quota, Scope, keep_best

Need = Literal["activations", "gradients", "training"]


@attrs.frozen
class Observation:
    """What one batch showed of one layer, as the module saw it.

    Attributes:
        layer: the view that brings these tensors to groups, positions and samples.
        inputs: what came into the module.
        outputs: what came out of the module, before any activation function.
        activations: the same after normalisation and activation function, where the task says which
            module gives it; otherwise ``outputs``.
        output_gradient: d loss / d outputs, for criteria that need gradients.
        weight_gradient: d loss / d weight of this batch as ``[G, out, fan]``, likewise.
    """

    layer: LayerView
    inputs: Tensor
    outputs: Tensor
    activations: Tensor
    output_gradient: Tensor | None = None
    weight_gradient: Tensor | None = None


class Criterion(abc.ABC):
    """Says which connections of one layer to keep. Higher score = keep.

    Class attributes:
        name: what the user writes.
        needs: what it must observe; nothing (the default) means that the weights are enough, and no
            data is read. "activations" are shown on the task's calibration set, "gradients" (of the
            loss, and the activations with them) on its training set. "training" is the sum of ``trace`` over
            the optimiser steps before the update.
        scope: what competes where the schedule does not say: the connections of one output unit,
            of the layer, or of all layers of the update.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    scope: ClassVar[Scope] = "layer"

    def check(self, scope: Scope, pattern: Pattern | None) -> None:
        """Refuse what this criterion cannot select. Called before training, for every planned update.

        Raises:
            ConfigError: saying which option to change.
        """

    def observe(self, seen: Observation) -> None:
        """Take in one batch. Called under ``torch.no_grad``; keep sums, not tensors."""

    def end_pass(self) -> bool:
        """Say, after all batches, whether they must be shown once more (to work in slices)."""
        return False

    def trace(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return what an optimiser step adds to the sum that ``take_trace`` gets; for those that need "training".

        The sum begins anew with the first step of a stage; an update at the very beginning of a stage gets that of the
        stage before. What a mask update drops begins at 0 again, should it come back. It must depend on the options
        and the arguments alone, and must not wait for the device.

        Args:
            weight: ``[G, out, fan]``, before the step.
            gradient: of the loss, as the optimiser sees it: of all accumulated batches, unscaled, clipped, masked.

        Returns:
            A tensor of that shape; it is added up in float32.
        """
        raise NotImplementedError(f"{type(self).__name__} needs training, but defines no trace")

    def take_trace(self, total: Tensor) -> None:
        """Take the sum of ``trace``, float32 ``[G, out, fan]``. Keep it for ``score``; do not change it."""

    @abc.abstractmethod
    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return one float per connection, higher = keep.

        Args:
            weight: ``[G, out, fan]``.
            generator: a CPU generator of this layer and update, for criteria that draw.

        Returns:
            A tensor of the shape of ``weight``. NaN is refused by the engine; ``-inf`` ranks last.
        """

    def select(self, scores: Tensor, quota: Quota, generator: torch.Generator) -> Tensor:
        """Return the mask, bool ``[G, out, fan]``, True = keep: exactly as many as the quota asks.

        Override it where a score alone cannot say what to keep. It is not called when layers compete
        with each other (scope "global"): then the engine ranks the scores of all of them.
        """
        return keep_best(scores, quota)

    def reconstruct(self, weight: Tensor, mask: Tensor) -> Tensor:
        """Return the weight ``[G, out, fan]`` to go on with; dropped entries are set to zero afterwards.

        The default changes nothing. Methods that repair the kept weights (OBS, SparseGPT) override it.
        """
        return weight
