import pytest
import torch
from safetensors.torch import save_file

from prunekit.errors import CheckpointError
from prunekit.runs.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    newest_checkpoint,
    remove_older,
    save_checkpoint,
)

OPTIMIZERS = [
    lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    lambda parameters: torch.optim.AdamW(parameters, lr=0.1, amsgrad=True),
    lambda parameters: torch.optim.RMSprop(parameters, lr=0.1, centered=True, momentum=0.5),
]


def trained(make_optimizer, steps=3):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = make_optimizer(model.parameters())
    train(model, optimizer, steps)
    return model, optimizer


def train(model, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.arange(8.0).reshape(2, 4) + step).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS)
def test_training_resumes_from_a_checkpoint_to_the_last_bit(tmp_path, make_optimizer):
    torch.manual_seed(0)
    model, optimizer = trained(make_optimizer)
    facts = {"losses": [0.1, 1 / 3]}
    saved = Checkpoint(1, 3, {"model": model.state_dict(), "masks": {}}, optimizer.state_dict(), facts)
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved))
    other = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    other.load_state_dict(loaded.tensors["model"])
    resumed = make_optimizer(other.parameters())
    resumed.load_state_dict(dict(loaded.optimizer))
    train(model, optimizer, 3)
    train(other, resumed, 3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert (loaded.stage, loaded.step, loaded.facts) == (1, 3, facts)
    assert loaded.tensors["masks"] == {}


@pytest.mark.parametrize(
    ("state", "group"), [({"history": [torch.ones(1)]}, {}), ({}, {"lr": torch.tensor(0.1)}), ({}, {"lr": {0.1}})]
)
def test_an_optimiser_that_cannot_be_saved_is_refused(tmp_path, state, group):
    optimizer = {"state": {0: state}, "param_groups": [{"params": [0], **group}]}
    with pytest.raises(CheckpointError, match=r"the optimiser cannot be saved \(Object of type (Tensor|set)"):
        save_checkpoint(tmp_path, Checkpoint(0, 1, {"model": {"w": torch.ones(1)}}, optimizer, {}))
    assert not list(tmp_path.iterdir())


def test_only_the_newest_checkpoints_are_kept_and_the_newest_is_found(tmp_path):
    for stage, step in [(0, 5), (0, 10), (1, 0), (1, 100000)]:
        save_checkpoint(tmp_path, Checkpoint(stage, step, {"model": {"w": torch.ones(2)}}, None, {}))
    assert len(list(tmp_path.iterdir())) == 2
    newest, broken = newest_checkpoint(tmp_path)
    assert (newest.stage, newest.step, broken) == (1, 100000, [])


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_checkpoints_are_kept_as_requested(tmp_path, keep):
    for step in range(5):
        save_checkpoint(tmp_path, Checkpoint(0, step, {"model": {"w": torch.ones(2)}}, None, {}), keep)
    assert [int(path.stem[-1]) for path in sorted(tmp_path.iterdir())] == list(range(5 - keep, 5))


def test_older_checkpoints_of_a_killed_run_are_removed_but_newer_ones_are_kept(tmp_path):
    made = [Checkpoint(0, step, {"model": {"w": torch.ones(2)}}, None, {}) for step in range(5)]
    for checkpoint in made:
        save_checkpoint(tmp_path, checkpoint, keep=9)
    remove_older(tmp_path, made[3], keep=2)
    assert [int(path.stem[-1]) for path in sorted(tmp_path.iterdir())] == [2, 3, 4]


def test_a_run_that_went_back_removes_later_checkpoints(tmp_path):
    for step in (1, 2, 3, 4, 2):
        save_checkpoint(tmp_path, Checkpoint(0, step, {"model": {"w": torch.ones(2)}}, None, {}), keep=9)
    assert [int(path.stem[-1]) for path in sorted(tmp_path.iterdir())] == [1, 2]


def test_a_broken_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path):
    for step in (1, 2):
        path = save_checkpoint(tmp_path, Checkpoint(0, step, {"model": {"w": torch.ones(2)}}, None, {}))
    path.write_bytes(path.read_bytes()[:40])
    newest, broken = newest_checkpoint(tmp_path)
    assert newest.step == 1
    assert len(broken) == 1
    assert path.name in broken[0]


def saved_in(folder):
    tensors = {"model": {"w": torch.arange(4.0), "n": torch.tensor(3), "none": torch.empty(0, dtype=torch.bfloat16)}}
    optimizer = {"state": {0: {"step": 3}}, "param_groups": [{"lr": 0.25, "betas": (0.5, 0.75), "params": [0]}]}
    return save_checkpoint(folder, Checkpoint(0, 1, tensors, optimizer, {"loss": [0.125, float("nan")]}))


def test_no_bit_of_a_checkpoint_changes_unnoticed(tmp_path):
    path = saved_in(tmp_path)
    whole = path.read_bytes()
    load_checkpoint(path)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=path.name):
            load_checkpoint(path)


def test_only_broken_checkpoints_are_an_error_but_an_empty_folder_is_not(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])
    (tmp_path / "stage-000-step-00000001.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "header",
    [{}, {"prunekit": "no json"}, {"prunekit": "[]"}, {"prunekit": '{"kind": "checkpoint", "format": 99}'}],
)
def test_a_safetensors_file_that_is_not_a_checkpoint_is_an_error(tmp_path, header):
    save_file({"w": torch.ones(1)}, tmp_path / "x.safetensors", metadata=header)
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        load_checkpoint(tmp_path / "x.safetensors")
