"""Show batches to criteria: forward and backward passes without training.

It must not know criteria, stages or masks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from prunekit.contracts.seeds import Seeds
from prunekit.contracts.task import Split, Task
from prunekit.distributed.batch_shares import BatchShare
from prunekit.distributed.fsdp import is_fully_sharded
from prunekit.distributed.ranks import sum_gradients
from prunekit.pruning.evidence import Evidence, NetworkEvidence
from prunekit.runs.training.batches import RankBatches, check_share, weighted
from prunekit.runs.training.hardware import Hardware


@attrs.frozen
class BatchShower:
    """Runs the model on batches without training it, for criteria that observe.

    Each rank runs its share of every batch; gradients are those of the whole batch. The model is in evaluation mode,
    and mixed precision is off, so that statistics are those of fp32.

    Attributes:
        task: supplies batches and loss.
        model: the model to run.
        hardware: where to compute.
        seeds: of the order of the data.
        limit: largest number of batches; 0: all.
        before_batch: called before each batch on all ranks, for example to check for requests to stop.
    """

    task: Task
    model: nn.Module
    hardware: Hardware
    seeds: Seeds
    limit: int
    before_batch: Callable[[], object] | None = None

    def activations(self) -> Iterator[float]:
        """Run the calibration set forward; yield this rank's share, in (0, 1], of each batch."""
        self.model.eval()
        for own in self._shares("calibration", self.limit):
            if own.share == 0 and not is_fully_sharded(self.model):
                continue
            check_share(own)
            with torch.no_grad():
                self.task.forward(self.model, own.batch)
            yield own.share

    def gradients(self) -> Iterator[float]:
        """Run training batches forward and backward, as many as the calibration set has; yield the share of each.

        While the caller handles a batch, ``grad`` of the parameters is the gradient of the loss of the whole batch.
        """
        self.model.eval()
        for own in self._training_shares():
            self.model.zero_grad(set_to_none=True)
            with torch.enable_grad():
                self._loss(own).backward()  # type: ignore[no-untyped-call]
            sum_gradients(self.model.parameters())
            yield own.share
        self.model.zero_grad(set_to_none=True)

    def losses(self) -> Iterator[Tensor]:
        """Yield the losses of the same batches with their graphs, for criteria that need the whole network."""
        self.model.eval()
        return map(self._loss, self._training_shares())

    def _training_shares(self) -> Iterator[BatchShare]:
        return self._shares("train", self.limit or len(self.task.batches("calibration", 0, self.seeds)))

    def _loss(self, own: BatchShare) -> Tensor:
        check_share(own)
        return weighted(self.task.loss(self.model, own.batch), own.share)

    def calibration(self) -> Iterator[Any]:
        """Yield the whole batches of the calibration set, on every rank."""
        return self._read(self.task.batches("calibration", 0, self.seeds), self.limit)

    def forward(self, batch: Any) -> Any:
        """Run the model on a whole batch."""
        self.model.eval()
        return self.task.forward(self.model, batch)

    def evidence(self, network: nn.Module, traces: Mapping[str, Tensor] | None = None) -> Evidence:
        """Return the evidence for choosing masks of the deployed network.

        Args:
            network: the part of the model that is pruned.
            traces: layer -> sum of the criterion's traces over training steps, if there are any.
        """
        whole = NetworkEvidence(self.model, self.losses, self.calibration, self.forward)
        return Evidence(self.activations, self.gradients, self.task.activations(network), whole, traces)

    def _shares(self, split: Split, limit: int) -> Iterator[BatchShare]:
        return self._read(RankBatches(self.task, self.task.batches(split, 0, self.seeds)), limit)

    def _read(self, source: Sequence[Any], limit: int) -> Iterator[Any]:
        for index in range(min(limit, len(source)) if limit else len(source)):
            if self.before_batch is not None:
                self.before_batch()
            yield self.hardware.move(source[index])
