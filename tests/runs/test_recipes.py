from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.errors import ConfigError
from prunekit.runs.config import Choice, RunConfig
from prunekit.runs.recipes import build_config, read_recipe, to_toml

RECIPE = """
seed = 3
structure = "f=1/4"

[task]
name = "deepid2plus"
preset = "small"

[criterion]
name = "correlation"
strength = 0.75

[training]
budget = "600 steps"
clip_norm = 5
"""


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return read_recipe(path)


def test_an_empty_recipe_is_the_reference_run() -> None:
    config = build_config()
    assert (config.task, config.criterion, config.schedule) == (
        Choice("deepid2plus"),
        Choice("correlation"),
        Choice("layerwise"),
    )
    assert (config.seed, config.device, config.structure_text) == (0, "auto", None)


def test_a_recipe_is_read(recipe: dict[str, Any]) -> None:
    config = build_config(recipe)
    assert config.task == Choice("deepid2plus", {"preset": "small"})
    assert config.training == {"budget": "600 steps", "clip_norm": 5.0}
    assert config.structure_text == "f=1/4"


def test_overrides_precede_flags_and_flags_precede_the_recipe(recipe: dict[str, Any]) -> None:
    flags = {"seed": 4, "device": "cpu", "out": None}
    config = build_config(recipe, flags, ["seed=5", "criterion.strength=0.5"])
    assert (config.seed, config.device, config.criterion.options) == (5, "cpu", {"strength": 0.5})


def test_another_name_drops_the_options_of_the_old_one(recipe: dict[str, Any]) -> None:
    assert build_config(recipe, {"criterion": "random"}).criterion == Choice("random")
    assert build_config(recipe, {}, ["criterion.name=random"]).criterion == Choice("random")
    assert build_config(recipe, {"criterion": "correlation"}).criterion.options == {"strength": 0.75}


def test_a_density_replaces_the_recipes_structure(recipe: dict[str, Any]) -> None:
    assert build_config(recipe, {"density": "0.1"}).structure_text == "*=0.1"


def test_the_recipe_is_not_changed(recipe: dict[str, Any]) -> None:
    before = {key: dict(value) if isinstance(value, dict) else value for key, value in recipe.items()}
    build_config(recipe, {"criterion": "random"}, ["task.preset=paper"])
    assert recipe == before


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("0.75", 0.75),
        ("true", True),
        ("12", 12),
        ("1e3", "1e3"),
        ("007", "007"),
        ("1/2", "1/2"),
        ("[1, 2]", [1, 2]),
        ("a b", "a b"),
        ("2020-01-01", "2020-01-01"),
        ("", ""),
        ('"5"', "5"),
        ("x=y", "x=y"),
        ("1\nb=2", "1\nb=2"),
    ],
)
def test_a_value_is_toml_if_nothing_is_lost_else_text(value: str, read: object) -> None:
    assert build_config({}, {}, [f"task.data={value}"]).task.options == {"data": read}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sed=1"], "unknown key 'sed' in the recipe (did you mean 'seed'?)"),
        (["trainng.budget=1"], "unknown section 'trainng' (did you mean 'training'?)"),
        (["strength"], "cannot parse -o 'strength', expected section.key=value"),
        (["criterion.=1"], "cannot parse -o"),
        (["seed=one"], "seed is 'one', expected a whole number"),
        (["seed=-1"], "seed is -1, expected a whole number, at least 0"),
        (["task=other"], "task is 'other', expected a section [task]; write task.name = \"deepid2plus\""),
        (["training=5"], 'expected a section [training]; write training.budget = "600 steps"'),
        (["structure={hidden = 0.5, f = 1}"], 'structure is a section, expected text; write structure = "hidden=0.5'),
        (["no_plugins=abc"], 'no_plugins is \'abc\', expected a list, for example ["a", "b"]'),
        (["out="], "out is empty, expected a path"),
        (["masks="], "masks is empty, expected a path"),
        (["weights="], "weights is empty, expected a path"),
        (["out=a\udcff"], "out is 'a\\udcff', which is not valid UTF-8"),
        (["task.data=\udcff"], "task.data is '\\udcff', which is not valid UTF-8"),
        (["no_plugins=['\udcff']"], "not valid UTF-8"),
        (["density=0"], "density: density 0 is outside (0, 1]"),
        (["density=50"], "for 50 percent write 0.5"),
        (["structure=f=2"], "density 2 is outside"),
        (["training.clip=1"], "section [training] has no option 'clip' (did you mean 'clip_norm'?)"),
        (["training.accumulate=0"], "training.accumulate is 0, expected at least 1"),
        (["training.budget=a day"], "cannot parse training budget 'a day'"),
        (["training.clip_norm=" + "9" * 400], "expected a number or none"),
        (["seed=" + "9" * 5000], "expected a whole number"),
        (["training.precision=fp8"], "training.precision is 'fp8', expected one of fp32, bf16, fp16"),
    ],
)
def test_a_wrong_override_is_one_line_of_error_with_the_next_step(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({}, {}, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_must_be_text() -> None:
    with pytest.raises(ConfigError, match=r"criterion.name is 3, expected text"):
        build_config({"criterion": {"name": 3}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed = \n", r"is not valid TOML: .*line 1"),
        (b"\xff", "is not valid UTF-8"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"recipe\.toml' {message}"):
        read_recipe(path)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PATHS = TEXTS.filter(lambda path: path not in {"", "none"})  # which is no file; one of that name is ./none
VALUES = st.one_of(TEXTS, st.integers(-(2**62), 2**62), st.booleans(), st.floats(allow_nan=False))
OPTIONS = st.dictionaries(TEXTS.filter(lambda key: key != "name"), st.one_of(VALUES, st.lists(VALUES, max_size=3)))
CONFIGS = st.builds(
    RunConfig,
    task=st.builds(Choice, TEXTS, OPTIONS),
    criterion=st.builds(Choice, TEXTS, OPTIONS),
    density=st.one_of(st.none(), st.floats(1e-9, 1)),
    masks=PATHS,
    freeze_masks=st.booleans(),
    weights=st.one_of(st.none(), PATHS),
    sparse_model=st.booleans(),
    training=st.fixed_dictionaries({}, optional={"clip_norm": st.one_of(st.none(), st.floats(0, 9))}),
    seed=st.integers(0, 2**62),
    out=st.one_of(st.none(), PATHS),
    no_plugins=st.lists(TEXTS, max_size=2).map(tuple),
)


@settings(deadline=None, max_examples=60)
@given(CONFIGS)
def test_a_written_recipe_is_read_back_equal(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> None:
    path = tmp_path_factory.mktemp("recipes") / "config.toml"
    path.write_bytes(to_toml(config).encode())
    assert build_config(read_recipe(path)) == config


def test_options_about_densities_survive_a_round_trip(tmp_path):
    config = build_config(
        {"density": 0.5, "distribution": "uniform", "pattern": "4x1", "scope": "layer"}, {"keep_dense": ["first", "f*"]}
    )
    assert config.keep_dense == ("first", "f*")
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    assert build_config(read_recipe(tmp_path / "config.toml")) == config
    assert build_config({"pattern": "1:4"}).structure_text == "*=0.25"
    assert build_config({"pattern": "1:4", "structure": "a=1/4"}).structure_text == "a=1/4"
    assert build_config({"pattern": "4x1"}).structure_text is None
