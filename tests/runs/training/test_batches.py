import attrs
import pytest
import torch
from torch.utils.data import DataLoader

from prunekit.contracts.seeds import Seeds
from prunekit.runs.training.batches import BatchStream, read_ahead
from prunekit.testing import ToyTask

LENGTH = len(ToyTask().batches("train", 0, Seeds(1)))


def plain(seeds, numbers):
    """Read epoch after epoch, without streams."""
    epochs = [ToyTask().batches("train", epoch, seeds) for epoch in range(numbers.stop // LENGTH + 1)]
    return [batch for epoch in epochs for batch in epoch][numbers.start : numbers.stop]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_come_in_order_through_epochs_without_drawing_global_random_numbers(workers):
    seeds, numbers = Seeds(1), range(LENGTH - 3, 2 * LENGTH + 2)
    torch.manual_seed(5)
    read = list(read_ahead(BatchStream(ToyTask(), seeds, LENGTH), numbers, workers))
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    expected = plain(seeds, numbers)
    assert len(read) == len(expected) == LENGTH + 5
    for own, batch in zip(read, expected, strict=True):
        assert own.share == 1.0
        assert all(torch.equal(one, other) for one, other in zip(own.batch, batch, strict=True))


def test_batches_that_fill_no_step_are_omitted_from_each_epoch():
    read = list(read_ahead(BatchStream(ToyTask(), Seeds(1), LENGTH - 1), range(2 * LENGTH - 2), 0))
    expected = plain(Seeds(1), range(2 * LENGTH))
    del expected[2 * LENGTH - 1], expected[LENGTH - 1]
    assert all(torch.equal(own.batch[0], batch[0]) for own, batch in zip(read, expected, strict=True))


def test_each_epoch_is_requested_once():
    requested = []

    @attrs.frozen
    class Counting(ToyTask):
        """Records the requested epochs."""

        def batches(self, split, epoch, seeds):
            requested.append(epoch)
            return super().batches(split, epoch, seeds)

    for _ in read_ahead(BatchStream(Counting(), Seeds(1), LENGTH), range(2 * LENGTH), 0):
        pass
    assert requested == [0, 1]


@pytest.mark.thorough
def test_a_spawned_worker_reads_the_share_of_its_rank():
    stream = BatchStream(ToyTask(), Seeds(1), LENGTH, rank=1, ranks=2)
    [own] = DataLoader(stream, batch_size=None, sampler=[0], num_workers=1, multiprocessing_context="spawn")
    batch = ToyTask().batches("train", 0, Seeds(1))[0]
    assert own.share == 0.5
    assert torch.equal(own.batch[0], batch[0][len(batch[0]) // 2 :])


def test_worker_processes_start_once_for_a_whole_stage(toy_run, monkeypatch):
    began = []
    start = torch.utils.data.dataloader._MultiProcessingDataLoaderIter.__init__
    monkeypatch.setattr(
        torch.utils.data.dataloader._MultiProcessingDataLoaderIter,
        "__init__",
        lambda *arguments: (began.append(1), start(*arguments))[1],
    )
    recipe = {"density": 0.5, "schedule": {"name": "one-shot"}, "training": {"budget": "25 steps", "workers": 1}}
    _, with_workers, _ = toy_run(recipe)
    assert began == [1, 1]  # two stages
    _, alone, _ = toy_run({**recipe, "training": {"budget": "25 steps"}}, out="alone")
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(tensor, with_workers.model.state_dict()[name])
