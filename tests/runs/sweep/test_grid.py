"""Reading a grid from a recipe: defaults and refusals."""

import pytest
from sweep_grids import ONE_SHOT, RECIPE, cells_of, with_sweep

from prunekit.errors import ConfigError


def test_an_omitted_axis_has_the_value_of_the_recipe():
    recipe = {**RECIPE, "structure": "a=1/2", "criterion": {"name": "random"}, "sweep": {}}
    assert list(map(str, cells_of(recipe))) == ["dense", "a=1/2; random; layerwise", "control; a=1/2"]
    assert str(cells_of({**RECIPE, "sweep": {"criteria": ["random"]}})[1]) == "hidden=1/4 b=1/2; random; layerwise"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, "has no section \\[sweep\\]"),
        ({"sweep": {"structure": ["a=1"]}}, "no option 'structure' \\(did you mean 'structures'"),
        (with_sweep(structures="hidden=1/4"), "sweep.structures is 'hidden=1/4', expected a list"),
        (with_sweep(criteria="magnitude"), "sweep.criteria is 'magnitude', expected a list"),
        (with_sweep(criteria=[{"mode": "highest"}]), 'expected "NAME" or {name'),
        (with_sweep(criteria=["magnitude", "magnitude"]), "contains an entry twice: magnitude, magnitude"),
        (with_sweep(criteria=["magnitud"]), "there is no criterion 'magnitud' \\(did you mean 'magnitude'"),
        (with_sweep(structures=["hiden=1/4"]), "hiden"),
        (with_sweep(structures=["hidden=25"]), "for 25 percent write 0.25"),
        (
            {**RECIPE, "criterion": {"name": "correlation", "strength": 0.1}},
            "criterion.strength is set, but sweep.criteria",
        ),
        ({**RECIPE, "dense": True}, "leave out freeze_masks and dense"),
    ],
)
def test_a_wrong_grid_is_refused_before_any_run(recipe, message):
    with pytest.raises(ConfigError, match=message):
        cells_of(recipe)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"structures": ["a=1/2"], "densities": [0.5]}, "both sweep.structures and sweep.densities"),
        ({"densities": [0.5, 0.5]}, "sweep.structures or densities contains an entry twice"),
        ({"densities": [0.5], "patterns": ["units", "units"]}, "distributions or patterns contains .* units, units"),
        ({"densities": [0.5], "distributions": ["erk"]}, "contains 'erk', expected one of uniform, .* global"),
        ({"distributions": ["uniform"]}, "divides one density among the layers, but no density is given"),
        ({"densities": [0.5], "patterns": ["1:4"]}, "pattern 1:4 has density 0.25"),
        ({"densities": [50]}, "for 50 percent write 0.5"),
    ],
)
def test_a_wrong_allocation_is_refused_before_any_run(sweep, message):
    with pytest.raises(ConfigError, match=message):
        cells_of({**ONE_SHOT, "sweep": sweep})
