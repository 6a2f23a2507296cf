"""Masks in a user's own loop, on parameters that FSDP2 or tensor parallelism shards over two processes."""

import gc
import weakref

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import prunekit
from prunekit.criteria.magnitude import Magnitude
from prunekit.distributed.dtensor import full_tensor, local_shard, reshard, shard_like
from prunekit.masks.masks import Masks


class Drift(torch.optim.Optimizer):
    """Moves every weight at every step, so that dropped weights must be masked after it."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad + 1, alpha=group["lr"])


OPTIMIZERS = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "foreach": False}),
    (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    (torch.optim.AdamW, {"lr": 0.01, "foreach": False}),
    (torch.optim.Adam, {"lr": 0.01, "fused": True}),
    (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.9}),
    (torch.optim.Adagrad, {"lr": 0.01}),
    (Drift, {"lr": 0.01}),
]


class Net(nn.Module):
    """Layers whose first dimension is odd, and one of a single row, of which one of two processes has none."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(2, 5, 3)
        self.grouped = nn.Conv2d(5, 10, 1, groups=5)
        self.block = nn.Sequential(nn.Linear(40, 7), nn.Tanh(), nn.Linear(7, 6))
        self.last = nn.Linear(6, 1, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        self.double()

    def forward(self, images):
        return self.last(self.block(self.grouped(self.conv(images).tanh()).tanh().flatten(1)).tanh())


def sharded():
    model = Net()
    for part in (model.conv, model.block):
        fully_shard(part)
    return fully_shard(model)


def batch(seed, size=8):
    return torch.randn(size, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def own_half(images):
    if not distributed.is_initialized():
        return images
    return images.chunk(distributed.get_world_size())[distributed.get_rank()]


def square(model, images):
    return (model(images) - 1).square().mean()


def random_masks(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.dim() > 1}
    return Masks({name: torch.rand(shape, generator=generator) < 0.5 for name, shape in shapes.items()})


def train(model, kind, options):
    """Return the losses, norms, weights and states of five held steps, with other masks for the last two."""
    optimizer = kind(model.parameters(), **options)
    masks, seen = random_masks(model), []
    with masks.hold(model, optimizer) as held:
        for step in range(5):
            if step == 3:
                held.update(random_masks(model, seed=2))
            for part in range(2):
                square(model, own_half(batch(10 * step + part))).backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            seen.append(float(full_tensor(norm)))
            optimizer.step()
            optimizer.zero_grad()
        states = {
            name: {key: full_tensor(value).clone() for key, value in optimizer.state[parameter].items() if value.dim()}
            for name, parameter in model.named_parameters()
        }
    zeros = Masks.from_zeros(model)
    return seen, {name: full_tensor(parameter) for name, parameter in model.named_parameters()}, states, zeros


def train_sharded(kind, options):
    return train(sharded(), globals().get(kind) or getattr(torch.optim, kind), options)


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=lambda case: getattr(case, "__name__", None))
def test_held_training_equals_that_of_one_process(two_ranks, kind, options):
    norms, weights, states, wanted = train(Net(), kind, options)
    assert wanted == wanted & random_masks(Net(), seed=2)
    for found_norms, found, found_states, zeros in two_ranks.run(train_sharded, kind.__name__, options):
        assert found_norms == pytest.approx(norms, rel=1e-9)
        assert zeros == wanted
        for name, weight in weights.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-7, atol=1e-9)
            for key, value in states[name].items():
                torch.testing.assert_close(found_states[name][key], value, rtol=1e-7, atol=1e-9)


def hold_and_look():
    """Return the local shards of a held weight, its gradient and its state after a step, and of the mask."""
    model = sharded()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    masks = random_masks(model)
    square(model, own_half(batch(0))).backward()
    optimizer.step()
    with masks.hold(model, optimizer):
        square(model, own_half(batch(1))).backward()
        weight = model.get_parameter("block.0.weight")
        state = optimizer.state[weight]["exp_avg"]
        here = [local_shard(tensor).clone() for tensor in (weight, weight.grad, state)]
        return [*here, local_shard(shard_like(masks.tensors["block.0.weight"], weight))]


def test_dropped_gradients_and_states_are_zero_in_every_shard(two_ranks):
    parts = []
    for weight, gradient, state, mask in two_ranks.run(hold_and_look):
        for tensor in (weight, gradient, state):
            assert (tensor[~mask] == 0).all()
            assert not tensor[~mask].signbit().any()
            assert (tensor[mask] != 0).any()
        parts.append(mask)
    assert [len(part) for part in parts] == [4, 3]
    assert torch.equal(torch.cat(parts), random_masks(Net()).tensors["block.0.weight"])


def apply_and_read(path):
    model = sharded()
    with torch.no_grad():
        model(own_half(batch(0)))  # leaves whole parameters in the model
    masks = prunekit.load_masks(path)
    masks.apply(model)
    state = model.state_dict()
    prunekit.Masks({"last.weight": torch.zeros(1, 6, dtype=torch.bool)}).apply(state)
    read = prunekit.Masks.from_zeros(model)
    if distributed.get_rank() == 0:
        read.save(f"{path}.read")
    return full_tensor(model.block[0].weight), full_tensor(model.last.weight)


def test_masks_from_a_file_are_applied_to_shards_and_read_back(two_ranks, tmp_path):
    path = tmp_path / "masks.safetensors"
    masks = random_masks(Net())
    masks.save(path)
    expected = Net()
    masks.apply(expected)
    for hidden, last in two_ranks.run(apply_and_read, str(path)):
        assert torch.equal(hidden, expected.block[0].weight)
        assert (last == 0).all()  # through its state dict
    read = prunekit.load_masks(f"{path}.read")
    assert read == masks & read
    assert (read | prunekit.Masks({**read.tensors, "last.weight": masks.tensors["last.weight"]})) == masks


CRITERIA = [
    ("magnitude", {}),
    ("magnitude", {"scope": "global"}),
    ("random", {}),
    ("correlation", {}),
    ("obs", {}),
    ("snip", {}),
]


def select(model, criterion, options):
    batches = None
    if criterion in {"correlation", "obs", "snip"}:
        batches = [own_half(batch(seed)) for seed in (3, 4)]
        options = {**options, "loss": square}
    before = {name: full_tensor(parameter).clone() for name, parameter in model.named_parameters()}
    masks = prunekit.select(model, criterion, density=0.5, batches=batches, **options)
    assert all(torch.equal(full_tensor(parameter), before[name]) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    return masks


def select_sharded(criterion, options):
    return select(sharded(), criterion, options)


@pytest.mark.parametrize(("criterion", "options"), CRITERIA)
def test_selection_equals_that_of_one_process(two_ranks, criterion, options):
    expected = select(Net(), criterion, options)
    for found in two_ranks.run(select_sharded, criterion, options):
        assert found == expected


def refuse_the_whole_network(name):
    with pytest.raises(prunekit.ConfigError, match=r"layer 'conv' is sharded; use another criterion"):
        prunekit.select(sharded(), name, density=0.5, batches=[batch(0)], loss=square)


@pytest.mark.parametrize("name", ["grasp", "synflow"])
def test_a_criterion_that_needs_the_whole_network_is_refused(two_ranks, name):
    two_ranks.run(refuse_the_whole_network, name)


def most_whole_at_once(scope):
    """Return the largest number of full weights and scores alive at once during a selection."""
    alive, most = weakref.WeakSet(), [0]

    class Watched(Magnitude):
        def score(self, weight, generator):
            scores = super().score(weight, generator)
            for tensor in (weight, scores):
                alive.add(tensor)
            gc.collect()
            most[0] = max(most[0], len(alive))
            return scores

    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6)))
    for layer in model:
        fully_shard(layer)
    prunekit.select(fully_shard(model), Watched, density=0.5, scope=scope)
    return most[0]


@pytest.mark.parametrize(("scope", "most"), [("layer", 2), ("unit", 2), ("global", 7)])
def test_only_one_full_layer_is_in_memory_unless_layers_compete(two_ranks, scope, most):
    for found in two_ranks.run(most_whole_at_once, scope):
        assert found == most


def tensor_parallel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 6))
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def train_tensor_parallel():
    model = tensor_parallel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    masks = prunekit.select(model, density=0.25)
    inputs = torch.randn(16, 10, generator=torch.Generator().manual_seed(1))
    with masks.hold(model, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            optimizer.step()
    return masks, {name: full_tensor(parameter) for name, parameter in model.named_parameters()}


def test_tensor_parallel_layers_are_pruned_like_plain_ones(two_ranks):
    for masks, weights in two_ranks.run(train_tensor_parallel):
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 6))
        assert masks == prunekit.select(plain, density=0.25)
        for name, mask in masks.tensors.items():
            assert torch.equal(weights[name] != 0, mask)


def hold_weight_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(20, 9)), nn.ReLU(), nn.Linear(9, 2))
    expected = prunekit.select(model, density=0.25, scope="unit")
    fully_shard(model)
    masks = prunekit.select(model, density=0.25, scope="unit")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with masks.hold(model, optimizer):
        for _ in range(2):
            model(torch.ones(3, 20)).sum().backward()
            optimizer.step()
    carrier = model[0].parametrizations.weight.original1
    return masks == expected and torch.equal(full_tensor(carrier) != 0, masks.tensors["0.weight"])


def test_the_carrier_of_a_computed_weight_may_be_sharded(two_ranks):
    assert two_ranks.run(hold_weight_norm) == [True, True]


def whole_again():
    model = sharded()
    with torch.no_grad():
        model(own_half(batch(0)))
    left = type(model.last.weight).__name__
    reshard(model)
    return left, type(model.last.weight).__name__


def test_parameters_are_sharded_again_after_a_forward_pass(two_ranks):
    assert two_ranks.run(whole_again) == [("Parameter", "DTensor")] * 2


def refuse_spread_masks():
    model = sharded()
    with pytest.raises(prunekit.MaskError, match=r"'conv.weight' is sharded over processes; pass mask.full_tensor"):
        Masks({"conv.weight": model.conv.weight.detach() != 0})


def test_a_sharded_mask_is_refused(two_ranks):
    two_ranks.run(refuse_spread_masks)


def test_an_ordinary_tensor_is_its_own_shard_and_its_own_full_tensor():
    tensor = torch.ones(3)
    assert local_shard(tensor).data_ptr() == full_tensor(tensor).data_ptr() == tensor.data_ptr()
    assert shard_like(tensor, torch.zeros(3)) is tensor
