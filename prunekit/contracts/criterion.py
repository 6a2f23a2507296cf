"""The contract of a criterion, which decides which connections of a layer to keep.

A criterion is an attrs class; the arguments of its constructor are its options. For each layer and each mask update the
engine creates a new object and calls, in this order: ``observe`` for every batch (if the criterion needs data),
``end_pass`` after the last one, ``take_trace`` (if it needs training), ``score``, ``select``, ``reconstruct``. A
criterion that has to see all layers at once is a ``NetworkCriterion``, which gets a ``Scene`` instead of batches.

This module must not know the task, the schedule or the training loop.
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
    """The tensors of one layer in one batch, shaped as its module has them.

    Attributes:
        layer: the view that reshapes these tensors to groups, positions and samples.
        inputs: the module's first input.
        outputs: the module's output, before any activation function.
        activations: the output after normalisation and activation function if the task names the module that
            computes it; otherwise ``outputs``.
        output_gradient: d loss / d outputs, in the shape of ``outputs``; ``None`` unless the criterion needs gradients.
        weight_gradient: d loss / d weight of this batch, ``[G, out, fan]``; ``None`` unless the criterion needs
            gradients. If a module is called several times in a batch, each observation has the gradient of all calls.
        call: index of this call to the module within the batch, from 0.
        share: fraction of the batch's samples on this rank: 1.0 in a single process. With several, ``inputs``,
            ``outputs``, ``activations`` and ``output_gradient`` hold this rank's samples, and ``weight_gradient`` is
            that of the whole batch, the same on every rank.
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
    """The whole network in its current state, dropped weights being 0, with its losses and batches.

    The callables put the network into evaluation mode and run it under the caller's grad mode, which is on in
    ``NetworkCriterion.survey``. They may be called any number of times.

    Attributes:
        model: the module that takes batches: the network and, in training, the modules around it.
        network: the part of the model that is pruned.
        layers: layer name -> view, for the layers of this update.
        masks: layer name -> current mask, bool ``[G, out, fan]``; layers without an entry are dense.
        losses: yields the scalar loss of each training batch with its graph. With several processes it is this rank's
            share of the loss: its gradients, summed over the ranks (``prunekit.distributed.ranks.sum_over_ranks``),
            are those of the whole batch.
        batches: yields calibration batches, whole ones on every rank.
        forward: runs the model on a calibration batch and returns its output.

    Raises:
        ConfigError: raised by the callables if the user gave no such data.
    """

    model: nn.Module
    network: nn.Module
    layers: Mapping[str, LayerView]
    masks: Mapping[str, Tensor]
    losses: Callable[[], Iterator[Tensor]]
    batches: Callable[[], Iterator[Any]]
    forward: Callable[[Any], Any]


class Criterion(abc.ABC):
    """Scores the connections of one layer; higher = keep.

        @attrs.define
        class Sensitivity(Criterion):  # |weight x gradient of the loss|, summed over batches
            name = "sensitivity"
            needs = frozenset({"gradients"})
            _sum: Tensor | float = attrs.field(default=0.0, init=False)

            def observe(self, seen):
                self._sum = self._sum + seen.weight_gradient

            def score(self, weight, generator):
                return (weight * self._sum).abs()

    Class attributes:
        name: the criterion's name on the command line and in recipes.
        needs: the evidence to observe. Nothing (the default): the weights are enough, and no data is read.
            "activations": those on the task's calibration set. "gradients": those of the loss on its training set,
            with the activations. "training": the sum of ``trace`` over the optimiser steps before the update.
            "network": reserved for a ``NetworkCriterion``.
        scope: which connections compete unless the schedule sets it: those of one output unit ("unit"), of the layer
            ("layer"), or of all layers of the update ("global").
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    scope: ClassVar[Scope] = "layer"

    def check(self, scope: Scope, pattern: Pattern | None) -> None:
        """Raise an error if the criterion cannot select so. Called before training, for every planned update.

        Args:
            scope: which connections compete: "unit", "layer" or "global".
            pattern: the pattern of the masks; ``None``: unstructured.

        Raises:
            ConfigError: the criterion cannot select so; the message names the option to change.
        """

    def observe(self, seen: Observation) -> None:
        """Add one batch to the evidence. Called under ``torch.no_grad``; keep sums, not the tensors of each batch."""

    def end_pass(self) -> bool:
        """Return, after all batches, whether to observe them all once more (to work on one slice at a time).

        With several processes each has observed its own samples. Add up the sums of all ranks here
        (``prunekit.contracts.sums.join``), so that every rank computes the same scores. All ranks must return the same
        answer.
        """
        return False

    def trace(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return the term of one optimiser step in the sum for ``take_trace``, if the criterion needs "training".

        The sum restarts with the first step of a stage; an update at the very beginning of a stage gets the sum of the
        stage before. Connections that an update drops restart at 0 if they are let back. The term must depend only on
        the options and the arguments, and must not wait for the device.

        Args:
            weight: ``[G, out, fan]``, before the step.
            gradient: ``[G, out, fan]``, as the optimiser sees it: of all accumulated batches, unscaled, clipped and
                masked.

        Returns:
            ``[G, out, fan]``; terms are summed in float32.
        """
        raise NotImplementedError(f"{type(self).__name__} needs 'training' but does not define trace")

    def take_trace(self, total: Tensor) -> None:
        """Receive the sum of ``trace``, float32 ``[G, out, fan]``. Keep it for ``score``; do not change it."""

    @abc.abstractmethod
    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return one float per connection, higher = keep.

        Args:
            weight: ``[G, out, fan]``.
            generator: a CPU generator for this layer and update, for criteria that draw random numbers.

        Returns:
            ``[G, out, fan]``. The engine refuses NaN; ``-inf`` ranks last.
        """

    def select(self, scores: Tensor, quota: Quota, generator: torch.Generator) -> Tensor:
        """Return the mask, bool ``[G, out, fan]``, True = keep, with exactly the number of connections in the quota.

        Override it if a score alone does not determine the mask. It is not called when layers are selected together
        (scope "global", pattern "channels"): the engine then ranks the scores of all these layers.

        Args:
            scores: ``[G, out, fan]``, from ``score``.
            quota: how many connections to keep, which ones compete, and in which pattern.
            generator: a CPU generator for this layer and update.
        """
        return keep_best(scores, quota)

    def reconstruct(self, weight: Tensor, mask: Tensor) -> Tensor:
        """Return the weight ``[G, out, fan]`` to continue with; dropped entries are set to zero afterwards.

        The default returns the weight unchanged. Methods that repair the kept weights (OBS, SparseGPT) override it.
        """
        return weight


def observes(criterion: Criterion) -> bool:
    """Return whether a criterion observes batches layer by layer."""
    return bool(criterion.needs & {"activations", "gradients"})


@attrs.define(eq=False)
class NetworkCriterion(Criterion):
    """Scores all layers of a network together.

        @attrs.define
        class OutputSensitivity(NetworkCriterion):  # |weight x gradient of the summed outputs|, without labels
            name = "output-sensitivity"

            def survey(self, scene):
                weights = {name: view.weight for name, view in scene.layers.items()}
                outputs = sum(scene.forward(batch).sum() for batch in scene.batches())
                gradients = torch.autograd.grad(outputs, list(weights.values()))
                return {
                    name: scene.layers[name].to_matrix((weight * gradient).abs())
                    for (name, weight), gradient in zip(weights.items(), gradients)
                }

    The engine calls ``survey`` once for each update, and ``score`` returns its result for one layer. Subclasses are
    ``attrs.define`` or plain classes, not frozen ones: the engine sets ``found``.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"network"})
    scope: ClassVar[Scope] = "global"

    found: Tensor | None = attrs.field(default=None, init=False, repr=False)

    @abc.abstractmethod
    def survey(self, scene: Scene) -> Mapping[str, Tensor]:
        """Return layer name -> scores ``[G, out, fan]`` for every layer of the scene, higher = keep.

        Called with gradients enabled. It must leave the network as it was, including ``.grad``, even on errors.
        """

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return the survey's scores of this layer."""
        if self.found is None:
            raise DataError(f"criterion {self.name!r} has not surveyed a network; call survey before score")
        return self.found
