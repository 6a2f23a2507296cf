"""Show batches to criteria: forward and backward passes that train nothing."""

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
from prunekit.runs.training.batches import Parts, check_share, weighted
from prunekit.runs.training.hardware import Hardware


@attrs.frozen
class BatchShower:
    """Runs the model on batches without training it, for criteria that observe.

    Of several processes each shows its part of every batch; with ``gradients`` of the loss of the whole batch.

    The model is in evaluation mode; mixed precision is off, so that statistics are those of fp32.

    Attributes:
        task: gives batches and loss.
        model: what to run.
        hardware: where.
        seeds: of the data's order.
        limit: most batches to show; 0: all.
        look: called before each batch, on all ranks; whoever asked to stop is heard there.
    """

    task: Task
    model: nn.Module
    hardware: Hardware
    seeds: Seeds
    limit: int
    look: Callable[[], object] | None = None

    def activations(self) -> Iterator[float]:
        """Show the calibration set, forward only."""
        self.model.eval()
        for part in self._parts("calibration", self.limit):
            if part.share == 0 and not is_fully_sharded(self.model):
                continue
            check_share(part)
            with torch.no_grad():
                self.task.forward(self.model, part.batch)
            yield part.share

    def gradients(self) -> Iterator[float]:
        """Show training batches, as many as the calibration set has, with the gradients of their loss."""
        self.model.eval()
        for part in self._training_parts():
            self.model.zero_grad(set_to_none=True)
            with torch.enable_grad():
                self._loss(part).backward()  # type: ignore[no-untyped-call]
            sum_gradients(self.model.parameters())
            yield part.share
        self.model.zero_grad(set_to_none=True)

    def losses(self) -> Iterator[Tensor]:
        """Yield the losses of the same batches with their graphs, for criteria that look at the whole network."""
        self.model.eval()
        return map(self._loss, self._training_parts())

    def _training_parts(self) -> Iterator[BatchShare]:
        return self._parts("train", self.limit or len(self.task.batches("calibration", 0, self.seeds)))

    def _loss(self, part: BatchShare) -> Tensor:
        check_share(part)
        return weighted(self.task.loss(self.model, part.batch), part.share)

    def calibration(self) -> Iterator[Any]:
        """Yield the batches of the calibration set, whole ones on every rank."""
        return self._read(self.task.batches("calibration", 0, self.seeds), self.limit)

    def forward(self, batch: Any) -> Any:
        """Run the model on one of them."""
        self.model.eval()
        return self.task.forward(self.model, batch)

    def evidence(self, network: nn.Module, traces: Mapping[str, Tensor] | None = None) -> Evidence:
        """Return all of this for choosing masks of the deployed network, with what training steps left behind."""
        whole = NetworkEvidence(self.model, self.losses, self.calibration, self.forward)
        return Evidence(self.activations, self.gradients, self.task.activations(network), whole, traces)

    def _parts(self, split: Split, limit: int) -> Iterator[BatchShare]:
        return self._read(Parts(self.task, self.task.batches(split, 0, self.seeds)), limit)

    def _read(self, source: Sequence[Any], limit: int) -> Iterator[Any]:
        for index in range(min(limit, len(source)) if limit else len(source)):
            if self.look is not None:
                self.look()
            yield self.hardware.move(source[index])
