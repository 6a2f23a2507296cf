import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.cli import main
from prunekit.contracts.schedule import Target
from prunekit.contracts.seeds import Seeds
from prunekit.errors import ConfigError
from prunekit.layers.channels.groups import ChannelGroup, ChannelGroups
from prunekit.layers.view import LayerShape
from prunekit.masks.patterns import Blocks, NofM, Units, kept_count
from prunekit.pruning.standalone import select
from prunekit.pruning.structure import Structure
from prunekit.pruning.structure_text import parse_structure, resolve_densities, resolve_structure
from prunekit.pruning.targets import check_fit, distribute, join_channel_groups
from prunekit.testing import ToyNetwork, ToyTask

LAYERS = ["conv1", "conv2", "features.f", "head"]


def alone(*densities: tuple[str, float]) -> tuple[Target, ...]:
    return tuple(Target(layer, {layer: density}) for layer, density in densities)


def test_fractions_and_decimals_keep_the_order_written() -> None:
    assert parse_structure("f=1/256 5b=0.5,conv*=1, head=2.5e-1") == (
        ("f", 1 / 256),
        ("5b", 0.5),
        ("conv*", 1.0),
        ("head", 0.25),
    )


def test_densities_by_layer_can_be_resolved_without_text() -> None:
    names = ["a b", "c=d"]
    assert resolve_densities([("c=d", 0.5), ("a b", 1.0)], names) == alone(("c=d", 0.5), ("a b", 1.0))
    with pytest.raises(ConfigError, match="named twice"):
        resolve_densities([("a b", 0.5), ("a*", 1.0)], names)


def test_spaces_around_the_equals_sign_are_ignored() -> None:
    assert parse_structure(" f = 1/2 ,  g= 1/4\n") == (("f", 0.5), ("g", 0.25))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 99), st.integers(99, 9999)), min_size=1, max_size=5))
def test_every_fraction_is_parsed_exactly(fractions: list[tuple[int, int]]) -> None:
    text = " ".join(f"layer{index}={above}/{below}" for index, (above, below) in enumerate(fractions))
    assert [density for _, density in parse_structure(text)] == [above / below for above, below in fractions]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the structure is empty"),
        ("f", "cannot parse structure entry 'f',"),
        ("=0.5", "cannot parse structure entry '=0.5'"),
        ("f=", "'' is not a density"),
        ("f=0.5=1", "cannot parse structure entry"),
        ("f=half", "'half' is not a density, expected for example"),
        ("f=1/0", "'f=1/0' divides by zero"),
        ("f=0", r"density 0 is outside \(0, 1\]"),
        ("f=-1/2", r"density -0.5 is outside"),
        ("f=nan", "density nan is outside"),
        ("f=1e999", "density inf is outside"),
        ("f=5", r"density 5 is outside \(0, 1\]; for 5 percent write 0.05"),
        ("f=25%", "a density is a fraction; write 0.25 for 25%"),
    ],
)
def test_a_wrong_entry_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_structure(text)


def test_names_ends_aliases_and_globs_are_resolved() -> None:
    resolved = resolve_structure("f=1/4 conv*=1/2 h=0.1", LAYERS, {"h": "head"})
    assert resolved == alone(("features.f", 0.25), ("conv1", 0.5), ("conv2", 0.5), ("head", 0.1))


def test_an_alias_of_layers_in_several_networks_is_one_entry_under_that_alias() -> None:
    layers, aliases = ["eyes.conv1", "eyes.f", "nose.conv1", "nose.f"], {"f": "*f", "1": "*conv1"}
    assert resolve_structure("f=1/4 1=1/2", layers, aliases) == (
        Target("f", {"eyes.f": 0.25, "nose.f": 0.25}),
        Target("1", {"eyes.conv1": 0.5, "nose.conv1": 0.5}),
    )
    assert resolve_structure("*.f=1/4", layers, aliases) == alone(("eyes.f", 0.25), ("nose.f", 0.25))
    assert resolve_structure("nose.f=1/4", layers, aliases) == alone(("nose.f", 0.25))
    assert resolve_structure("1=1/2", ["conv1", "f"], aliases) == alone(("conv1", 0.5))
    with pytest.raises(ConfigError, match=r"'nose.f' is named twice: by 'f' and by 'nose.\*'"):
        resolve_structure("f=1/4 nose.*=1/2", layers, aliases)


@pytest.mark.parametrize("text", ["head=0.5 head=0.5", "h=0.5 head=0.1", "conv*=0.5 conv2=0.1", "f=0.5 *=0.1"])
def test_a_layer_named_twice_is_refused_whatever_the_names(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is named twice: by '.*' and by '.*'"):
        resolve_structure(text, LAYERS, {"h": "head"})


def test_an_unknown_layer_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'conv1'"):
        resolve_structure("cov1=0.5", LAYERS)


def test_a_module_without_a_view_has_its_own_message() -> None:
    with pytest.raises(ConfigError, match="module 'pool' has no weights that can be pruned"):
        resolve_structure("pool=0.5", LAYERS, others=["pool"])


def test_an_alias_of_a_module_without_a_view_is_refused() -> None:
    with pytest.raises(ConfigError, match="module 'pool' has no weights"):
        resolve_structure("p=0.5", LAYERS, {"p": "pool"}, others=["pool"])


SHAPES = [
    LayerShape("conv1", "convolution", 1, 8, (3, 3, 3)),
    LayerShape("features.conv2", "convolution", 1, 8, (8, 3, 3)),
    LayerShape("fc", "linear", 1, 4, (64,)),
]


def test_keep_dense_takes_names_ends_globs_aliases_and_places():
    def rest(*keep_dense):
        entries = distribute(0.6, SHAPES, "uniform", keep_dense, {"head": "fc"})
        assert all(entry.targets.keys() == {entry.name} for entry in entries)
        return [entry.name for entry in entries]

    assert rest() == ["conv1", "features.conv2", "fc"]
    assert rest("first") == rest("conv1") == ["features.conv2", "fc"]
    assert rest("last", "first") == rest("head", "conv1", "fc") == ["features.conv2"]
    assert rest("conv2") == ["conv1", "fc"]
    with pytest.raises(ConfigError, match="keep_dense excludes all layers"):
        rest("*")
    with pytest.raises(ConfigError, match="no prunable layer is called 'frist'"):
        rest("frist")


def test_entries_whose_layers_share_channels_are_joined_even_through_other_layers():
    known = channel_groups(["a", "b"], ["b", "c"], ["d"])
    entries = resolve_structure("d=0.5 c=0.25 last=0.1 a=0.25 b=0.25", ["a", "b", "c", "d", "last"])
    assert join_channel_groups(entries, known) == (
        Target("d", {"d": 0.5}),
        Target("c+2", {"c": 0.25, "a": 0.25, "b": 0.25}),
    )
    alias = (Target("all", {"d": 0.5, "last": 0.5}), *entries[1:2], *entries[3:])
    assert [entry.name for entry in join_channel_groups(alias, known)] == ["all", "c+2"]


def test_layers_that_share_channels_need_the_same_density_or_get_that_of_their_sum():
    known = channel_groups(["a", "b"], ["c"])
    entries = (Target("a", {"a": 0.5}), Target("b", {"b": 0.2}), Target("c", {"c": 0.3}))
    with pytest.raises(ConfigError, match=r"but got a=0\.5 b=0\.2; use one density or exclude them all"):
        join_channel_groups(entries, known)
    (both, alone) = join_channel_groups(entries, known, {"a": 100, "b": 200, "c": 7})
    assert both.targets == {"a": pytest.approx(0.3), "b": pytest.approx(0.3)}
    assert alone.targets == {"c": pytest.approx(0.3)}
    with pytest.raises(ConfigError, match=r"no channel of the requested layers can be removed \(last: it is the end\)"):
        join_channel_groups((Target("last", {"last": 0.5}),), known)


def channel_groups(*layers):
    """Return channel groups of two channels each, one for each list of layers."""
    return ChannelGroups(
        tuple(ChannelGroup({name: torch.tensor([[0], [1]]) for name in names}) for names in layers),
        {name: 2 for names in layers for name in names},
        {"last": "it is the end"},
        {},
    )


def test_a_layer_that_is_called_last_is_that_layer():
    layers = [LayerShape(name, "linear", 1, 4, (4,)) for name in ("last", "end")]
    assert [entry.name for entry in distribute(0.6, layers, keep_dense=["last"])] == ["end"]


def test_the_pruned_layers_make_up_for_the_dense_ones():
    entries = distribute(0.5, SHAPES, "erdos-renyi", ["first"])
    targets = {name: density for entry in entries for name, density in entry.targets.items()}
    kept = sum(kept_count(targets.get(layer.name, 1.0), layer.weights) for layer in SHAPES)
    assert kept == kept_count(0.5, sum(layer.weights for layer in SHAPES))


def test_n_of_m_has_its_density_in_each_pruned_layer():
    entries = distribute(0.5, SHAPES, keep_dense=["first"], pattern=NofM(2, 4))
    assert [dict(entry.targets) for entry in entries] == [{"features.conv2": 0.5}, {"fc": 0.5}]


def test_all_layers_that_a_pattern_does_not_fit_are_named_with_the_next_step():
    entries = [Target(layer.name, {layer.name: 0.5}) for layer in SHAPES]
    with pytest.raises(ConfigError) as caught:
        check_fit(entries, SHAPES, NofM(2, 4))
    assert str(caught.value) == (
        "layer 'conv1': pattern 2:4 does not divide 3 input channels; with one density, add conv1 to keep_dense; with "
        "densities by layer, name only the others: features.conv2=0.5 fc=0.5"
    )
    with pytest.raises(
        ConfigError, match=r"layer 'conv1'.*layer 'features.conv2'.*add conv1, features.conv2 to keep_dense"
    ):
        check_fit(entries, SHAPES, Blocks(1, 64))
    check_fit(entries, SHAPES, Units())
    check_fit(entries[1:], SHAPES, NofM(1, 8))


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ({"density": 50.0}, "density: density 50 is outside (0, 1]; for 50 percent write 0.5"),
        (
            {"structure": "hidden=5"},
            "structure entry 'hidden=5': density 5 is outside (0, 1]; for 5 percent",
        ),
        ({"structure": "hiden=0.5"}, "no prunable layer is called 'hiden'"),
        ({"structure": "relu_a=0.5"}, "module 'relu_a' has no weights that can be pruned"),
        ({"distribution": "uniform"}, "distribution 'uniform' divides one density among the layers, but no density is"),
        ({"structure": "hidden=0.5", "keep_dense": ["first"]}, "but structure 'hidden=0.5' gives each layer its own"),
        ({"density": 0.5, "keep_dense": ["*"]}, "keep_dense excludes all layers"),
        ({"density": 0.04, "keep_dense": ["first"]}, "density 0.04 cannot be reached"),
        ({"pattern": "2:4", "density": 0.1}, "pattern 2:4 has density 0.5, but got density 0.1; leave the density out"),
        ({"pattern": "2:4", "distribution": "uniform"}, "in every layer, so there is nothing to distribute"),
        ({"pattern": "2:4", "density": 0.5, "keep_dense": ["first"]}, "cannot make up for those in keep_dense"),
        (
            {"pattern": "2:4"},
            "pattern 2:4 does not divide 1 input channels; with one density, add conv_a",
        ),
        ({"pattern": "channels", "structure": "classifier=0.5"}, "no channel of the requested layers can be removed"),
    ],
)
def test_python_recipe_and_command_line_refuse_a_structure_in_the_same_words(requested, message, capsys, tmp_path):
    entries = {"density": requested.get("density")}
    if "structure" in requested:
        entries = {"density": dict(parse_entry(entry) for entry in requested["structure"].split())}
    arguments = {key: value for key, value in requested.items() if key not in {"density", "structure"}}
    batches = ToyTask().batches("calibration", 0, Seeds(0))
    with pytest.raises(ConfigError) as caught:
        select(ToyNetwork(), **entries, **arguments, batches=batches)
    assert message in str(caught.value)

    plan = ["plan", "--task", "prunekit.testing:ToyTask", "--criterion", "magnitude", "--schedule", "one-shot"]
    flags = [
        word
        for key, value in requested.items()
        for item in (value if isinstance(value, list) else [value])
        for word in (f"--{key.replace('_', '-')}", str(item))
    ]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in requested.items()))
    for command in ([*plan, *flags], [*plan, str(recipe)]):
        assert main(command) != 0
        assert str(caught.value) in " ".join(capsys.readouterr().err.split())


def parse_entry(entry):
    name, _, density = entry.partition("=")
    return name, float(density)


def test_a_task_gives_the_structure_only_if_the_user_gives_none():
    assert Structure().or_default("a=1/2").densities == (("a", 0.5),)
    for structure in (Structure(0.1), Structure(densities=(("b", 0.5),)), Structure(pattern=NofM(2, 4))):
        assert structure.or_default("a=1/2") is structure
    with pytest.raises(ConfigError, match="no density is given"):
        Structure().or_default("").targets(SHAPES)
