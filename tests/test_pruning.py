import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunekit.builtin.magnitude import Magnitude
from prunekit.criteria import Criterion
from prunekit.errors import ConfigError, PluginError
from prunekit.layers import find_layers
from prunekit.observing import Evidence
from prunekit.pruning import choose_masks
from prunekit.schedules import Grow, MaskUpdate
from prunekit.seeds import Seeds
from prunekit.selection import kept_count

NOTHING = Evidence(None)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 6))


def choose(model, update, current=None, criterion=Magnitude, evidence=NOTHING, seed=0):
    return choose_masks(model, find_layers(model), update, current or {}, criterion, evidence, Seeds(seed))


def gradients_of(model, batches):
    def show():
        for batch in batches:
            model.zero_grad()
            model(batch).square().sum().backward()
            yield

    return show


@given(st.floats(0.05, 1), st.floats(0.05, 1))
@settings(deadline=None, max_examples=30)
def test_global_ranking_meets_the_total_and_equals_a_sort_of_all_weights(first, second):
    model = network()
    chosen = choose(model, MaskUpdate(0.0, {"0": first, "2": second}, scope="global"))
    total = kept_count(first, 120) + kept_count(second, 60)
    everything = torch.cat([model[0].weight.flatten(), model[2].weight.flatten()]).abs()
    threshold = everything.sort(descending=True).values[total - 1]
    assert torch.equal(chosen.masks["0"], model[0].weight.abs() >= threshold)
    assert torch.equal(chosen.masks["2"], model[2].weight.abs() >= threshold)


@given(st.floats(0.1, 1), st.floats(0, 1), st.sampled_from(["gradient", "random"]), st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_growth_fills_up_to_the_density_exactly_and_exchanges_what_was_asked(density, fraction, by, seed):
    model = network(seed)
    evidence = Evidence(None, gradients_of(model, [torch.randn(4, 12)]))
    static = choose(model, MaskUpdate(0.0, {"0": density}))
    update = MaskUpdate(0.0, {"0": density}, grow=Grow(by, fraction))
    exchanged = choose(model, update, static.masks, evidence=evidence)
    assert int(exchanged.masks["0"].sum()) == kept_count(density, 120)
    stayed = int((exchanged.masks["0"] & static.masks["0"]).sum())
    assert stayed >= kept_count(density * (1 - fraction), 120)


def test_growth_by_gradient_takes_the_largest_gradients_among_the_dropped():
    model = network()
    batches = [torch.randn(4, 12), torch.randn(4, 12)]
    mask = torch.zeros(10, 12, dtype=torch.bool)
    mask[0] = True
    evidence = Evidence(None, gradients_of(model, batches))
    chosen = choose(model, MaskUpdate(0.0, {"0": 0.2}, grow=Grow("gradient")), {"0": mask}, evidence=evidence)
    total = (
        sum(torch.autograd.grad(model(batch).square().sum(), model[0].weight)[0] for batch in batches)
        .abs()
        .masked_fill(mask, -1)
    )
    expected = mask.clone().flatten()
    expected[total.flatten().sort(descending=True).indices[:12]] = True
    assert torch.equal(chosen.masks["0"].flatten(), expected)


def test_a_dropped_connection_does_not_come_back_by_itself():
    model = network()
    mask = torch.rand(10, 12) < 0.5
    kept = int(mask.sum()) / 120
    with torch.no_grad():
        model[0].weight[~mask] = 9.0  # attractive, but gone
    chosen = choose(model, MaskUpdate(0.0, {"0": kept / 2}), {"0": mask})
    assert not (chosen.masks["0"] & ~mask).any()


@attrs.define
class Broken(Criterion):
    name = "broken"
    scores: str = "nan"

    def score(self, weight, generator):
        return {"nan": weight * torch.nan, "shape": weight[:, :1], "type": weight > 0, "fine": weight}[self.scores]

    def select(self, scores, quota, generator):
        return torch.ones_like(scores, dtype=torch.bool)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ("nan", "criterion 'broken' gave NaN scores for layer '0'"),
        ("shape", "scored layer '0' with torch.float32 .1, 1, 12., expected floats .1, 10, 12."),
        ("type", "scored layer '0' with torch.bool"),
        ("fine", "kept 120 of 120 connections of layer '0', expected exactly 60"),
    ],
)
def test_a_criterion_that_breaks_its_contract_is_named_with_the_layer(scores, words):
    with pytest.raises(PluginError, match=words):
        choose(network(), MaskUpdate(0.0, {"0": 0.5}), criterion=lambda: Broken(scores))


@attrs.define
class Needy(Criterion):
    name = "needy"
    needs = frozenset({"gradients"})

    def score(self, weight, generator):
        return weight


def test_a_criterion_without_the_data_it_needs_says_what_to_give():
    with pytest.raises(ConfigError, match="criterion 'needy' needs gradients: give it a loss and training batches"):
        choose(network(), MaskUpdate(0.0, {"0": 0.5}), criterion=Needy)


@attrs.define
class Recorder(Criterion):
    """Sums what it sees; asks for three passes."""

    name = "recorder"
    needs = frozenset({"gradients"})
    seen: list = attrs.field(factory=list, init=False)
    passes: int = attrs.field(default=0, init=False)

    def observe(self, seen):
        self.seen.append(seen)

    def end_pass(self):
        self.passes += 1
        return self.passes < 3

    def score(self, weight, generator):
        return weight


def test_a_criterion_sees_inputs_outputs_activations_and_gradients_as_often_as_it_asks():
    model, made = network(), []
    batches = [torch.randn(4, 12), torch.randn(3, 12)]

    def make():
        made.append(Recorder())
        return made[-1]

    evidence = Evidence(None, gradients_of(model, batches), {"0": "1"})
    choose(model, MaskUpdate(0.0, {"0": 0.5}), criterion=make, evidence=evidence)
    assert len(made[0].seen) == 6
    for seen, batch in zip(made[0].seen, batches * 3, strict=True):
        outputs = model[0](batch)
        hidden = outputs.detach().requires_grad_()
        model[2](hidden.relu()).square().sum().backward()
        assert torch.equal(seen.inputs, batch)
        assert torch.equal(seen.outputs, outputs)
        assert torch.equal(seen.activations, outputs.relu())
        torch.testing.assert_close(seen.output_gradient, hidden.grad)
        torch.testing.assert_close(seen.weight_gradient[0], hidden.grad.T @ batch)


def test_an_inplace_activation_does_not_spoil_the_outputs():
    torch.manual_seed(0)
    model, made = nn.Sequential(nn.Linear(12, 10), nn.ReLU(inplace=True)), []
    batch = torch.randn(4, 12)

    def make():
        made.append(Recorder())
        return made[-1]

    def show():
        with torch.no_grad():
            model(batch)
        yield

    choose(model, MaskUpdate(0.0, {"0": 0.5}), criterion=make, evidence=Evidence(None, show, {"0": "1"}))
    assert torch.equal(made[0].seen[0].outputs, model[0](batch))
