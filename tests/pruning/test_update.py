import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunekit.contracts.criterion import Criterion, NetworkCriterion
from prunekit.contracts.schedule import Grow, MaskUpdate
from prunekit.contracts.seeds import Seeds
from prunekit.criteria.correlation import Correlation
from prunekit.criteria.magnitude import Magnitude
from prunekit.errors import ConfigError, DataError, MaskError, PluginError
from prunekit.layers.lookup import find_layers
from prunekit.masks.selection import Blocks, NofM, Units, kept_count
from prunekit.pruning.evidence import Evidence, NetworkEvidence
from prunekit.pruning.update import PrunableNetwork, choose_masks

NOTHING = Evidence(None)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 6))


def choose(model, update, current=None, criterion=Magnitude, evidence=NOTHING, seed=0):
    return choose_masks(
        PrunableNetwork(model, find_layers(model)), update, current or {}, criterion, evidence, Seeds(seed)
    )


def gradients_of(model, batches):
    def show():
        for batch in batches:
            model.zero_grad()
            model(batch).square().sum().backward()
            yield 1.0

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
def test_growth_fills_up_to_the_density_exactly_and_exchanges_the_requested_fraction(density, fraction, by, seed):
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


def test_reopening_scores_nothing_and_returns_the_connections_that_were_kept():
    class Silent(Magnitude):
        def score(self, weight, generator):
            raise AssertionError

    model = network()
    before = choose(model, MaskUpdate(0.0, {"0": 0.25})).masks
    update = MaskUpdate(0.0, {"0": 1.0, "2": 1.0}, "global", NofM(2, 4), Grow("random"))
    chosen = choose(model, update, before, Silent)
    assert all(mask.all() for mask in chosen.masks.values())
    assert torch.equal(chosen.pruned["0"], before["0"])
    assert chosen.pruned["2"].all()
    assert (chosen.layers["0"].kept, chosen.layers["2"].kept) == (120, 60)


def test_a_random_draw_uses_neither_the_criterion_nor_data():
    class Needy(Magnitude):
        needs = frozenset({"gradients"})

    model = network()
    update = MaskUpdate(0.0, {"0": 0.25}, by="random")
    first, other = choose(model, update, criterion=Needy), choose(model, update, criterion=Needy, seed=1)
    assert int(first.masks["0"].sum()) == 30
    assert not torch.equal(first.masks["0"], other.masks["0"])


def test_a_dropped_connection_does_not_come_back_without_growth():
    model = network()
    mask = torch.rand(10, 12) < 0.5
    kept = int(mask.sum()) / 120
    with torch.no_grad():
        model[0].weight[~mask] = 9.0  # attractive, but dropped
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
    """Records every observation; requests three passes."""

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


def test_a_criterion_sees_inputs_outputs_activations_and_gradients_in_every_pass_it_requests():
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


def test_an_inplace_activation_does_not_change_the_outputs():
    torch.manual_seed(0)
    model, made = nn.Sequential(nn.Linear(12, 10), nn.ReLU(inplace=True)), []
    batch = torch.randn(4, 12)

    def make():
        made.append(Recorder())
        return made[-1]

    def show():
        with torch.no_grad():
            model(batch)
        yield 1.0

    choose(model, MaskUpdate(0.0, {"0": 0.5}), criterion=make, evidence=Evidence(None, show, {"0": "1"}))
    assert torch.equal(made[0].seen[0].outputs, model[0](batch))


@pytest.mark.parametrize("scope", ["unit", "layer", "global"])
@pytest.mark.parametrize("first_scope", ["unit", "layer", "global"])
def test_one_update_after_another_keeps_the_exact_count_in_any_scope(first_scope, scope):
    model = network()
    masks = {}
    for step, density in enumerate([0.5, 0.4, 0.3, 0.07]):
        update = MaskUpdate(0.0, {"0": density, "2": density}, scope=first_scope if step == 0 else scope)
        chosen = choose(model, update, masks)
        kept = {name: int(mask.sum()) for name, mask in chosen.masks.items()}
        assert sum(kept.values()) == kept_count(density, 120) + kept_count(density, 60)
        assert all(not (chosen.masks[name] & ~mask).any() for name, mask in masks.items())
        masks = chosen.masks


@pytest.mark.parametrize("scope", ["unit", "layer"])
@pytest.mark.parametrize("criterion", [Magnitude, lambda: Correlation(mode="highest"), Correlation])
def test_growth_with_a_decaying_exchange_works_in_any_scope(scope, criterion):
    if scope == "layer" and criterion is Correlation:
        scope = "unit"  # halves are those of a unit
    model, masks = network(), {}
    batches = [torch.randn(40, 12), torch.randn(30, 12)]

    def show():
        for batch in batches:
            with torch.no_grad():
                model(batch)
            yield 1.0

    evidence = Evidence(show, gradients_of(model, batches))
    for fraction in (0.0, 0.3, 0.2, 0.1, 0.02):
        for by in ("gradient", "random"):
            update = MaskUpdate(0.0, {"0": 0.21}, scope=scope, grow=Grow(by, fraction))
            masks = choose(model, update, masks, criterion, evidence).masks
            assert int(masks["0"].sum()) == kept_count(0.21, 120)
    for density in (0.3, 0.55, 1.0):
        update = MaskUpdate(0.0, {"0": density}, scope=scope, grow=Grow("random"))
        grown = choose(model, update, masks, criterion, evidence).masks
        assert int(grown["0"].sum()) == kept_count(density, 120)
        assert not (masks["0"] & ~grown["0"]).any()
        masks = grown


@attrs.define
class Lowest(Criterion):
    name = "lowest"

    def score(self, weight, generator):
        return torch.full_like(weight, -torch.inf)


@pytest.mark.parametrize("scope", ["unit", "layer", "global"])
def test_a_candidate_with_the_lowest_score_ranks_before_dropped_connections(scope):
    mask = torch.rand(10, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    update = MaskUpdate(0.0, {"0": 0.3}, scope=scope)
    chosen = choose(network(), update, {"0": mask}, Lowest)
    assert int(chosen.masks["0"].sum()) == 36
    assert not (chosen.masks["0"] & ~mask).any()
    assert chosen.layers["0"].mean_score == 0.0


def test_blocks_keep_whole_blocks_at_any_density_and_again_under_their_own_mask():
    model = network()
    first = choose(model, MaskUpdate(0.0, {"0": 0.5}, pattern=Blocks(2, 3))).masks
    second = choose(model, MaskUpdate(0.0, {"0": 0.33}, pattern=Blocks(2, 3)), first).masks
    assert int(first["0"].sum()) == 10 * 6
    assert int(second["0"].sum()) == 7 * 6
    tiles = second["0"].reshape(5, 2, 4, 3).permute(0, 2, 1, 3).reshape(20, 6)
    assert set(tiles.sum(1).tolist()) == {0, 6}
    assert not (second["0"] & ~first["0"]).any()


def test_whole_units_are_kept_by_their_sums_and_again_under_their_own_mask():
    model = network()
    first = choose(model, MaskUpdate(0.0, {"0": 0.5, "2": 0.5}, pattern=Units())).masks
    second = choose(model, MaskUpdate(0.0, {"0": 0.33}, pattern=Units()), first).masks
    best = model[0].weight.detach().abs().sum(1).argsort(descending=True)
    for mask, count in ((first["0"], 5), (second["0"], 3)):
        assert mask.all(1).nonzero().squeeze(1).tolist() == sorted(best[:count].tolist())
        assert int(mask.sum()) == count * 12
    assert first["2"].all(1).sum() == 3


def test_blocks_of_all_layers_compete_by_their_sums():
    model = network()
    update = MaskUpdate(0.0, {"0": 0.5, "2": 0.5}, scope="global", pattern=Blocks(2, 2))
    masks = choose(model, update).masks
    sums = {
        name: weight.detach().abs().double().reshape(weight.shape[0] // 2, 2, weight.shape[1] // 2, 2).sum((1, 3))
        for name, weight in (("0", model[0].weight), ("2", model[2].weight))
    }
    ranked = torch.cat([values.flatten() for values in sums.values()]).sort(descending=True).values
    for name, values in sums.items():
        expected = (values > ranked[23]).repeat_interleave(2, 0).repeat_interleave(2, 1)  # 15 and 8 of 45 blocks
        assert torch.equal(masks[name], expected)
    worn = {"0": torch.rand(10, 12, generator=torch.Generator().manual_seed(0)) < 0.5}
    with pytest.raises(MaskError, match="92 connections are requested, but fewer are left in whole blocks of 2x2"):
        choose(model, update, worn)


def test_a_pattern_is_ranked_within_layers_where_only_the_criterion_would_rank_globally():
    @attrs.define
    class Everywhere(Magnitude):
        scope = "global"

    model = network()
    for pattern in (NofM(2, 4), Units(), Blocks(2, 2)):
        update = MaskUpdate(0.0, {"0": 0.5}, pattern=pattern)
        assert torch.equal(choose(model, update, criterion=Everywhere).masks["0"], choose(model, update).masks["0"])


@pytest.mark.parametrize(
    ("update", "words"),
    [
        (MaskUpdate(0.0, {"0": 0.5}, "unit", Units()), "layer '0': whole units compete with each other"),
        (MaskUpdate(0.0, {"0": 0.5}, "global", Units()), "units of different layers have different sizes"),
        (MaskUpdate(0.0, {"0": 0.5}, "global", NofM(2, 4)), "keeps the same number in every group"),
        (MaskUpdate(0.0, {"0": 0.04}, pattern=Units()), "keeps none of its 120 weights"),
        (MaskUpdate(0.0, {"0": 1e-9}), "layer '0': density 1e-09 keeps none of its 120 weights"),
        (MaskUpdate(0.0, {"0": 0.5}, pattern=NofM(2, 5)), "layer '0': pattern 2:5 does not divide 12 input channels"),
        (MaskUpdate(0.0, {"0": 0.3}, pattern=NofM(2, 4)), "layer '0': pattern 2:4 needs density 0.5, but got 0.3"),
        (MaskUpdate(0.0, {"0": 0.3}, pattern=Blocks(4, 4)), "layer '0': blocks of 4 x 4 do not divide"),
    ],
)
def test_a_density_or_pattern_that_does_not_fit_names_the_layer(update, words):
    with pytest.raises(ConfigError, match=words):
        choose(network(), update)


def test_batches_that_can_be_read_once_are_refused_for_a_second_pass():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    batches = iter([torch.randn(4, 1, 5, 5)])

    def show():
        for batch in batches:
            with torch.no_grad():
                model(batch)
            yield 1.0

    with pytest.raises(ConfigError, match="can be read only once"):
        choose(model, MaskUpdate(0.0, {"0": 0.5}), criterion=lambda: Correlation(memory=0), evidence=Evidence(show))


def test_data_a_criterion_cannot_use_names_the_layer():
    model = network()

    def show():
        with torch.no_grad():
            model(torch.full((4, 12), torch.nan))
        yield 1.0

    with pytest.raises(DataError, match="layer '0': "):
        choose(model, MaskUpdate(0.0, {"0": 0.5}), criterion=Correlation, evidence=Evidence(show))


@attrs.define(eq=False)
class Surveyor(NetworkCriterion):
    """Scores by the number of surveys; reads the batches ``reads`` times."""

    name = "surveyor"
    reads: int = 1

    def survey(self, scene):
        scenes.append(scene)
        assert torch.is_grad_enabled()
        for _ in range(self.reads):
            list(scene.batches())
        return {name: torch.full((1, *view.weight.shape), float(len(scenes))) for name, view in scene.layers.items()}


scenes = []


def test_a_network_is_surveyed_once_for_all_layers_of_an_update_under_the_masks_so_far():
    scenes.clear()
    model = network()
    masks = {"0": torch.rand(10, 12) < 0.5, "2": torch.ones(6, 10, dtype=torch.bool)}
    evidence = Evidence(None, network=NetworkEvidence(model, None, lambda: iter([1]), model))
    with torch.no_grad():
        chosen = choose(model, MaskUpdate(0.0, {"0": 0.2, "2": 0.2}), masks, Surveyor, evidence)
    assert len(scenes) == 1
    assert list(scenes[0].layers) == ["0", "2"]
    assert list(scenes[0].masks) == ["0"]
    assert torch.equal(scenes[0].masks["0"][0], masks["0"])
    assert sum(int(mask.sum()) for mask in chosen.masks.values()) == 24 + 12


@pytest.mark.parametrize(
    ("losses_and_batches", "reads", "words"),
    [
        (None, 1, "criterion 'surveyor' looks at the whole network: give it batches"),
        ((None, None), 1, "criterion 'surveyor' runs the network: give it batches"),
        ((None, lambda: used_up), 2, "they can be read only once; give a list"),
    ],
)
def test_a_survey_without_what_it_needs_says_what_to_give(losses_and_batches, reads, words):
    model = network()
    whole = losses_and_batches and NetworkEvidence(model, *losses_and_batches, forward=model)
    evidence = Evidence(None, network=whole)
    with pytest.raises(ConfigError, match=words):
        choose(model, MaskUpdate(0.0, {"0": 0.5}), criterion=lambda: Surveyor(reads), evidence=evidence)


used_up = iter([1])


def test_a_criterion_that_has_not_surveyed_a_network_raises_an_error():
    with pytest.raises(DataError, match="criterion 'surveyor' has not surveyed a network"):
        Surveyor().score(torch.ones(1, 2, 3), torch.Generator())


def test_each_call_of_a_module_within_a_batch_is_counted():
    made = []

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.again = nn.Linear(3, 3)

        def forward(self, inputs):
            return self.again(self.again(inputs))

    def make():
        made.append(Recorder())
        return made[-1]

    model = Twice()
    choose(
        model, MaskUpdate(0.0, {"again": 0.5}), {}, make, Evidence(None, gradients_of(model, [torch.ones(2, 3)] * 2))
    )
    assert [seen.call for seen in made[0].seen] == [0, 1] * 6
    assert torch.equal(made[0].seen[0].weight_gradient, made[0].seen[1].weight_gradient)
