import attrs
import pytest

from prunekit.contracts.training import Training
from prunekit.errors import ConfigError
from prunekit.runs.config import merge_training
from prunekit.runs.recipes import build_config


def test_structure_and_density_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"both structure 'f=0.5' and density 0.5"):
        build_config({"structure": "f=1/2", "density": 0.5})


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"pattern": "2-4"}, "pattern '2-4' is not understood"),
        ({"scope": "row"}, "scope is 'row', expected one of unit, layer, global or none"),
        ({"density": 0.5, "distribution": "erk"}, "expected one of uniform, erdos-renyi, erdos-renyi-kernel or none"),
        (
            {"distribution": "uniform"},
            "distribution 'uniform' divides one density .*, but no density is given",
        ),
        ({"keep_dense": ["first"]}, "keep_dense 'first' divides one density among the layers, but no density is given"),
        ({"structure": "a=1/2", "distribution": "uniform"}, "but structure 'a=0.5' gives each layer its own"),
        ({"structure": "a=1/2", "keep_dense": ["a", "b"]}, "keep_dense 'a, b' divides one density among the layers"),
        ({"pattern": "2:4", "density": 0.1}, "pattern 2:4 has density 0.5, but got density 0.1; leave the density out"),
        ({"pattern": "2:4", "density": 0.5, "keep_dense": ["a"]}, "cannot make up for those in keep_dense"),
        (
            {"pattern": "1:4", "distribution": "uniform"},
            "density 0.25 in every layer, so there is nothing to distribute; leave distribution 'uniform'",
        ),
    ],
)
def test_shares_that_contradict_each_other_are_refused(recipe, message):
    with pytest.raises(ConfigError, match=message):
        build_config(recipe)


def test_training_overrides_leave_the_tasks_other_settings_alone() -> None:
    merged = merge_training(Training(budget="7 epochs", warmup=0.1), {"warmup": "0.2", "clip_norm": "none"})
    assert merged == attrs.evolve(Training(budget="7 epochs"), warmup=0.2)
