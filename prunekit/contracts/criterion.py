"""The contract of a selection criterion: which connections of one layer to keep.

A criterion is an attrs class; its constructor's arguments are its options. The engine makes a fresh
object for each layer and each mask update and calls, in this order: ``observe`` for every batch (only when
it needs data), ``end_pass`` after the last one, ``take_trace`` (only when it needs training), ``score``,
``select``, ``reconstruct``. A criterion that has to see all layers at once is a ``NetworkCriterion``: it gets a
``Scene`` instead of batches.
It must not know the task, the schedule or the training loop.
"""

import abc
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import attrs
import torch
from torch import Tensor, nn

from prunekit.errors import DataError
from prunekit.layers.view import LayerView
from prunekit.masks.selection import Pattern, Quota, Scope, keep_best

Need = Literal["activations", "gradients", "network", "training"]


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
        weight_gradient: d loss / d weight of this batch as ``[G, out, fan]``, likewise; where a module is called
            several times in a batch, each observation has that of them all.
        call: which call of the module within the batch this is, from 0.
        share: the fraction of the batch's samples that is here: 1.0 with one process. With several, ``inputs``,
            ``outputs``, ``activations`` and ``output_gradient`` are of the samples that are here, and
            ``weight_gradient`` is that of the whole batch, the same on every rank.
    """

    layer: LayerView
    inputs: Tensor
    outputs: Tensor
    activations: Tensor
    output_gradient: Tensor | None = None
    weight_gradient: Tensor | None = None
    call: int = 0
    share: float = 1.0


@attrs.frozen
class Scene:
    """The whole network as it is now, dropped weights being 0, and what can be done with it.

    The callables put the network into evaluation mode and run it under the caller's grad mode, which is on in
    ``NetworkCriterion.survey``. They may be called as often as wanted.

    Attributes:
        model: what the batches run through: the network and, in training, what is around it.
        network: the part of it that is pruned.
        layers: those of this update, by name.
        masks: layer -> bool ``[G, out, fan]``, what there is now; a layer not named is dense.
        losses: yields the scalar loss of one training batch after another, each with its graph. With several
            processes, this rank's share of it: what is derived from it, summed over the ranks
            (``prunekit.distributed.ranks.sum_over_ranks``), is that of the whole batch.
        batches: yields calibration batches, whole ones on every rank.
        forward: runs the model on a batch of that form and returns what comes out.

    Raises:
        ConfigError: from the callables, where the user gave no such data.
    """

    model: nn.Module
    network: nn.Module
    layers: Mapping[str, LayerView]
    masks: Mapping[str, Tensor]
    losses: Callable[[], Iterator[Tensor]]
    batches: Callable[[], Iterator[Any]]
    forward: Callable[[Any], Any]


class Criterion(abc.ABC):
    """Says which connections of one layer to keep. Higher score = keep.

    Class attributes:
        name: what the user writes.
        needs: what it must observe; nothing (the default) means that the weights are enough, and no
            data is read. "activations" are shown on the task's calibration set, "gradients" (of the
            loss, and the activations with them) on its training set. "training" is the sum of ``trace`` over
            the optimiser steps before the update. "network" is that of a ``NetworkCriterion``, and only of one.
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
        """Say, after all batches, whether they must be shown once more (to work in slices).

        With several processes each has seen its own samples: here sums over them become those of all ranks
        (``prunekit.contracts.sums.join``), so that every rank scores alike. All ranks must give the same answer.
        """
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

        Override it where a score alone cannot say what to keep. It is not called when layers are selected
        together (scope "global", pattern "channels"): then the engine ranks the scores of all of them.
        """
        return keep_best(scores, quota)

    def reconstruct(self, weight: Tensor, mask: Tensor) -> Tensor:
        """Return the weight ``[G, out, fan]`` to go on with; dropped entries are set to zero afterwards.

        The default changes nothing. Methods that repair the kept weights (OBS, SparseGPT) override it.
        """
        return weight


def observes(criterion: Criterion) -> bool:
    """Say whether a criterion is shown batches layer by layer."""
    return bool(criterion.needs & {"activations", "gradients"})


@attrs.define(eq=False)
class NetworkCriterion(Criterion):
    """A criterion that looks at the network as a whole: the scores of all layers are found together.

    The engine calls ``survey`` once for each update; what it found of a layer is what ``score`` returns for it.
    Subclasses are ``attrs.define`` classes, or plain ones, not frozen: the engine sets ``found``.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"network"})
    scope: ClassVar[Scope] = "global"

    found: Tensor | None = attrs.field(default=None, init=False, repr=False)

    @abc.abstractmethod
    def survey(self, scene: Scene) -> Mapping[str, Tensor]:
        """Return the scores of every layer of the scene, ``[G, out, fan]`` each, higher = keep.

        Called with gradients enabled. The network must be afterwards as before, its ``.grad`` too, also on errors.
        """

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return what the survey found of this layer."""
        if self.found is None:
            raise DataError(f"criterion {self.name!r} has not surveyed a network")
        return self.found
