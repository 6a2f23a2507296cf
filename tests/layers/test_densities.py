import math
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prunekit.errors import ConfigError
from prunekit.layers.densities import RULES, allocate_density
from prunekit.layers.view import LayerShape
from prunekit.masks.patterns import Blocks, NofM, Units, kept_count, requested_count


def layer(name, outputs, *fan_shape, groups=1):
    return LayerShape(name, "any", groups, outputs, fan_shape)


@st.composite
def networks(draw):
    size = st.integers(1, 40)
    kernels = st.sampled_from([(), (1, 1), (3, 3), (5, 1)])
    return [
        layer(str(number), draw(size), draw(size), *draw(kernels), groups=draw(st.integers(1, 3)))
        for number in range(draw(st.integers(1, 6)))
    ]


def kept_of(layers, densities):
    return {each.name: kept_count(densities[each.name], each.weights) for each in layers}


@pytest.mark.thorough
@settings(deadline=None, max_examples=300)
@given(networks(), st.floats(0.001, 1), st.sampled_from(RULES), st.data())
def test_the_total_is_exact_and_each_layer_keeps_at_least_one_weight(layers, density, rule, data):
    dense = data.draw(st.sets(st.sampled_from([each.name for each in layers]), max_size=len(layers) - 1))
    total = sum(each.weights for each in layers)
    budget = kept_count(density, total)
    floor = sum(each.weights if each.name in dense else 1 for each in layers)
    assume(budget >= floor)
    densities = allocate_density(layers, density, rule, dense)
    assert list(densities) == [each.name for each in layers]
    assert all(0 < value <= 1 for value in densities.values())
    assert all(densities[name] == 1 for name in dense)
    kept = kept_of(layers, densities)
    assert sum(kept.values()) == budget
    assert min(kept.values()) >= 1


def rigl_reference(layers, density, exponent_of):
    """Return the densities that RigL's procedure gives: raise the scale until no probability is above 1."""
    dense = set()
    while True:
        rest = [each for each in layers if each.name not in dense]
        wanted = Fraction(density) * sum(each.weights for each in layers)
        wanted -= sum(each.weights for each in layers if each.name in dense)
        scale = wanted / sum(exponent_of(each) * each.weights for each in rest)
        probabilities = {each.name: scale * exponent_of(each) for each in rest}
        most = max(probabilities.values(), default=0)
        if most <= 1:
            return dict.fromkeys(dense, 1.0) | {name: float(value) for name, value in probabilities.items()}
        dense |= {name for name, value in probabilities.items() if value == most}


NETWORK = [
    layer("conv1", 64, 3, 3, 3),
    layer("conv2", 128, 64, 3, 3),
    layer("conv3", 256, 128, 3, 3),
    layer("fc", 10, 256),
]


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5])
@pytest.mark.parametrize(
    ("rule", "factor"),
    [
        ("uniform", lambda _: Fraction(1)),
        ("erdos-renyi", lambda each: Fraction(each.fan_shape[0] + each.outputs, each.fan_shape[0] * each.outputs)),
        (
            "erdos-renyi-kernel",
            lambda each: Fraction(sum(each.fan_shape) + each.outputs, math.prod(each.fan_shape) * each.outputs),
        ),
    ],
)
def test_densities_match_the_published_rule_up_to_one_weight(rule, factor, density):
    densities = allocate_density(NETWORK, density, rule)
    expected = rigl_reference(NETWORK, density, factor)
    for each in NETWORK:
        assert densities[each.name] * each.weights == pytest.approx(expected[each.name] * each.weights, abs=1.01)


def test_a_grouped_layer_has_the_density_of_one_of_its_groups():
    one = allocate_density([layer("a", 16, 8), layer("b", 64, 64)], 0.2, "erdos-renyi")
    # Groups are small networks of their own, so only the total is shared in another way.
    many = allocate_density([layer("a", 16, 8, groups=4), layer("b", 64, 64)], 0.2, "erdos-renyi")
    assert one["a"] / one["b"] == pytest.approx(many["a"] / many["b"], rel=0.05)


def test_small_layers_stay_dense_and_the_others_divide_the_rest():
    densities = allocate_density(NETWORK, 0.5, "erdos-renyi-kernel")
    assert densities["conv1"] == densities["fc"] == 1
    assert densities["conv3"] < 0.5 < densities["conv2"]


@settings(deadline=None, max_examples=100)
@given(networks(), st.floats(0.05, 1), st.sampled_from(RULES), st.sampled_from([Units(), Blocks(1, 1)]))
def test_layers_keep_whole_blocks_and_units(layers, density, rule, pattern):
    assume(kept_count(density, sum(each.weights for each in layers)) >= len(layers))
    densities = allocate_density(layers, density, rule, pattern=pattern)
    for each in layers:
        size = each.fan if isinstance(pattern, Units) else 1
        kept = requested_count(densities[each.name], each.weights, pattern, each.fan)
        assert kept % size == 0
        assert size <= kept <= each.weights
        assert kept == kept_count(densities[each.name], each.weights)


@pytest.mark.parametrize(
    ("density", "dense", "pattern", "message"),
    [
        (0.01, ["conv1", "fc"], None, r"the layers kept dense \(conv1, fc\) hold 0\.01\d* of the [\d,]+ weights"),
        (1e-6, [], None, r"keeps 0 of [\d,]+ weights, fewer than the number of layers \(4\)"),
        (0.5, [], NofM(2, 4), "pattern 2:4 has density 0.5 in every layer"),
        (1.0, ["fc"], None, None),
    ],
)
def test_an_impossible_total_is_explained_with_numbers(density, dense, pattern, message):
    if message is None:
        assert set(allocate_density(NETWORK, density, "uniform", dense, pattern).values()) == {1.0}
        return
    with pytest.raises(ConfigError, match=message):
        allocate_density(NETWORK, density, "uniform", dense, pattern)
