import copy

import pytest
import torch
from drawn_networks import fill, images, networks, residual
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunekit
from prunekit.criteria.magnitude import Magnitude
from prunekit.deployment.shrinking import shrink
from prunekit.errors import ConfigError, MaskError
from prunekit.layers.channels.finding import find_channel_groups
from prunekit.layers.channels.groups import ChannelGroup, ChannelGroups, by_parameter
from prunekit.layers.lookup import find_layers
from prunekit.layers.torch_views import core_view
from prunekit.masks.patterns import kept_count


def network():
    """Return two layers whose outputs are added, the second grouped, and a layer with half of its units in a group."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(3, 8), "b": nn.Conv2d(4, 8, 3, groups=2), "c": nn.Linear(5, 12)}).double()
    return model, find_layers(model)


def channel_groups():
    both = ChannelGroup({"a": torch.arange(8).reshape(4, 2), "b": torch.tensor([[7, 0], [1, 2], [3, 4], [5, 6]])})
    half = ChannelGroup({"c": torch.arange(0, 12, 2).reshape(6, 1)})
    followers = {"a.bias": torch.arange(8) // 2, "c.bias": torch.tensor([4, -1, 5, -1, 6, -1, 7, -1, 8, -1, 9, -1])}
    return ChannelGroups((both, half), {"a": 8, "b": 8, "c": 12}, {"last": "it is an output of the network"}, followers)


def slow_choice(scores, targets):
    """Return the units that each layer keeps, by summing and sorting one channel at a time."""
    kept = {name: [True] * len(rows) for name, rows in scores.items()}
    for group in channel_groups().groups:
        ranked = []
        for channel in range(len(group)):
            places = [(name, unit) for name in group.units for unit in group.units[name][channel].tolist()]
            ranked.append((-sum(float(scores[name][unit].sum()) for name, unit in places), channel))
        count = max(1, kept_count(targets[next(iter(group.units))], len(group)))
        best = [channel for _, channel in sorted(ranked)[:count]]
        for channel in range(len(group)):
            for name, units in group.units.items():
                for unit in units[channel].tolist():
                    kept[name][unit] = channel in best
    return kept


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.floats(0.01, 1), st.floats(0.01, 1), st.booleans())
def test_the_best_channels_are_those_with_the_largest_sums(seed, density, other, ties):
    _, layers = network()
    generator = torch.Generator().manual_seed(seed)
    scores = {name: layer.to_matrix(layer.weight.detach()) for name, layer in layers.items()}
    # Whole numbers have exact sums, and many equal ones.
    scores = {
        name: torch.randint(0, 2 if ties else 1000, score.shape, generator=generator).double()
        for name, score in scores.items()
    }
    targets = {"a": density, "b": density, "c": other}
    chosen = channel_groups().choose(targets, layers, scores, dict.fromkeys(targets))
    expected = slow_choice({name: score.flatten(0, 1) for name, score in scores.items()}, targets)
    for name, mask in chosen.items():
        assert mask.shape == scores[name].shape
        rows = mask.flatten(0, 1)
        assert rows.all(1).tolist() == rows.any(1).tolist() == expected[name]
    share = channel_groups().kept_shares(targets)
    assert {name: int(share[name] * mask.numel()) for name, mask in chosen.items()} == {
        name: int(mask.sum()) for name, mask in chosen.items()
    }


def test_an_incomplete_channel_cannot_be_kept_and_units_in_no_group_do_not_change():
    _, layers = network()
    scores = {name: torch.full((layer.groups, layer.outputs, layer.fan), 1.0) for name, layer in layers.items()}
    scores["a"][0, 2:4] = -torch.inf  # the lowest score of a complete channel beats an incomplete one
    before = {"a": None, "b": torch.ones(2, 4, 18, dtype=torch.bool), "c": torch.ones(1, 12, 5, dtype=torch.bool)}
    before["b"][0, 3, 0] = False
    before["b"][1, 2, 5] = False
    before["c"][0, 1, 0] = False  # of a unit in no group
    chosen = channel_groups().choose({"a": 0.5, "b": 0.5, "c": 1.0}, layers, scores, before)
    assert chosen["a"].any(2).flatten().tolist() == [True] * 4 + [False] * 4
    assert torch.equal(chosen["c"], before["c"])
    with pytest.raises(MaskError, match=r"density 0\.75 keeps 3 channels of a, b, but only 2 still have all"):
        channel_groups().choose({"a": 0.75, "b": 0.75}, layers, scores, before)


def test_other_parameters_of_a_channel_are_dropped_with_its_last_connection():
    _, layers = network()
    masks = {name: torch.ones(layer.weight.shape, dtype=torch.bool) for name, layer in layers.items()}
    assert by_parameter(layers, masks, channel_groups()).keys() == {"a.weight", "b.weight", "c.weight"}
    masks["a"][:4] = False
    masks["b"][[7, 0, 1]] = False
    masks["b"][2, 0] = False
    masks["c"][:6] = False
    found = by_parameter(layers, masks, channel_groups())
    assert found["a.bias"].tolist() == [False, False] + [True] * 6
    assert found["c.bias"].tolist() == [False, True] * 3 + [True] * 6
    del masks["b"]
    assert "a.bias" not in by_parameter(layers, masks, channel_groups())
    assert by_parameter(layers, {}, channel_groups()) == {}


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ({"last": 0.5}, r"no channel of layer 'last' can be removed \(it is an output of the network\); exclude it"),
        ({"else": 0.5}, "no channel of layer 'else' can be removed .the network does not call it, or its type"),
        ({"a": 0.5}, "layers a and b share channels and need the same density, but got a=0.5 b=1; use one"),
        ({"a": 0.5, "b": 0.25}, "got a=0.5 b=0.25; use one density or exclude them all"),
    ],
)
def test_densities_that_whole_channels_cannot_have_are_errors(targets, words):
    with pytest.raises(ConfigError, match=words):
        channel_groups().check(targets)
    channel_groups().check({"a": 0.5, "b": 0.5, "last": 1.0})


@pytest.mark.thorough
@settings(deadline=None, max_examples=60)
@given(networks(), st.floats(0.05, 1))
def test_a_network_pruned_by_channels_shrinks_to_the_requested_density(drawn, density):
    model, channels = drawn
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    inputs = images(channels)
    known = find_channel_groups(model, inputs, view_of=core_view)
    if not known.groups:
        return
    density = max(density, 0.51 / min(known.layers[name] for name in known.prunable))  # at least one unit of each layer
    targets = dict.fromkeys(sorted(known.prunable), density)
    masks = prunekit.select(model, density=targets, pattern="channels", batches=[inputs])
    shrunk = shrink(model, inputs, masks, view_of=core_view)
    masked = copy.deepcopy(model)
    masks.apply(masked)
    others = images(channels, 5, seed=1)
    expected = masked.eval()(others.clone())
    torch.testing.assert_close(shrunk.network.eval()(others.clone()), expected, rtol=1e-9, atol=1e-9)
    for name, share in known.kept_shares(targets).items():
        units, after = shrunk.report.layers[name].units
        # An activation that is not 0 for 0 is a constant, which padding makes uneven.
        constant = sum(shrunk.report.layers[name].constant_units.values())
        assert after - constant == share * units


def filled():
    """Return a residual network without equal units."""
    model = residual()
    fill(model, 0)
    for name in ("0", "1.first.0", "1.second", "4"):
        nn.init.normal_(model.get_submodule(name).weight)
    return model


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "taylor", "random", "obs", "synflow", "lamp"])
def test_any_criterion_chooses_channels(criterion):
    batches = [(images(2, seed=seed), torch.tensor([0, 1, 2])) for seed in range(2)]
    masks = prunekit.select(
        filled(),
        criterion,
        density=0.5,
        pattern="channels",
        batches=batches,
        loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
    )
    rows = [masks.tensors[f"{name}.weight"].flatten(1) for name in ("0", "1.first.0", "1.second")]
    kept = rows[0].all(1)
    assert int(kept.sum()) == 3
    assert all(torch.equal(row.all(1), kept) and torch.equal(row.any(1), kept) for row in rows)
    assert all(torch.equal(masks.tensors[name], kept) for name in ("0.bias", "1.first.1.weight", "1.first.1.bias"))
    assert "4.weight" not in masks.tensors


@pytest.mark.parametrize("read", [list, iter])
def test_the_batch_used_for_tracing_is_also_observed(read):
    seen = []

    class Recorder(Magnitude):
        needs = frozenset({"activations"})

        def observe(self, observation):
            if observation.inputs.shape[1] == 2:  # the first layer
                seen.append(float(observation.inputs[0, 0, 0, 0]))

    batches = [images(2, seed=seed) for seed in range(3)]
    prunekit.select(filled(), Recorder, density=0.5, pattern="channels", batches=read(batches))
    assert seen == [float(batch[0, 0, 0, 0]) for batch in batches]


def test_a_compiled_network_has_the_channels_of_the_plain_one():
    plain = prunekit.select(filled(), density=0.5, pattern="channels", batches=[images(2)])
    compiled = torch.compile(filled(), backend="eager")
    masks = prunekit.select(compiled, density=0.5, pattern="channels", batches=[images(2)])
    assert {name.removeprefix("_orig_mod."): int(mask.sum()) for name, mask in masks.tensors.items()} == {
        name: int(mask.sum()) for name, mask in plain.tensors.items()
    }
    masks.apply(compiled)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batches": None}, "needs a batch to trace the channels of the model: give batches="),
        ({"batches": []}, "needs a batch"),
        ({"forward": lambda *_: None}, "forward\\(model, batch\\) does not"),
        (
            {"density": {"4": 0.5}},
            "no channel of the requested layers can be removed \\(4: it is an output of the network\\)",
        ),
        ({"density": {"0": 0.5}}, "layers 0, 1.first.0 and 1.second share .* got 0=0.5 1.first.0=1 1.second=1"),
        ({"keep_dense": ["0"]}, "got 0=1 1.first.0="),
        ({"scope": "global"}, "channels compete only within the layers that share them, not with scope 'global'"),
        ({"criterion": "sparsegpt"}, "cannot keep the pattern channels"),
    ],
)
def test_an_impossible_request_is_an_error_in_one_line(arguments, words):
    requested = {"density": 0.5, "pattern": "channels", "batches": [images(2)], **arguments}
    with pytest.raises(ConfigError, match=words):
        prunekit.select(filled(), **requested)


def test_a_distribution_compensates_for_layers_that_keep_all_channels():
    model = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 10))
    masks = prunekit.select(
        model, density=0.5, distribution="erdos-renyi", pattern="channels", batches=[torch.randn(2, 4)]
    )
    kept = sum(int(masks.tensors[f"{name}.weight"].sum()) for name in (0, 2))
    total = 120 + 1200 + 400
    assert abs(kept + 400 - total / 2) <= 30
