"""The contracts carry what the field does: five methods, each a plugin of under 30 lines, run by the engine."""

import inspect

import attrs
import pytest
import torch

from prunekit.contracts.criterion import Criterion
from prunekit.contracts.events import MasksUpdated
from prunekit.contracts.markers import hookimpl
from prunekit.contracts.options import option
from prunekit.contracts.schedule import Grow, MaskUpdate, Plan, Schedule, Stage, Start
from prunekit.contracts.seeds import Seeds
from prunekit.errors import ConfigError
from prunekit.masks.masks import load_masks
from prunekit.testing import ToyNetwork


@attrs.define
class Taylor(Criterion):
    """A gradient criterion: |weight x gradient|, summed over batches (first-order Taylor)."""

    name = "first-order"
    needs = frozenset({"gradients"})
    _sum: torch.Tensor | None = attrs.field(default=None, init=False)

    def observe(self, seen):
        gradient = seen.weight_gradient
        self._sum = gradient.clone() if self._sum is None else self._sum + gradient

    def score(self, weight, generator):
        return (weight * self._sum).abs()


@attrs.define
class LeastSquares(Criterion):
    """A reconstructing criterion: refits the kept weights of a unit to its outputs by least squares."""

    name = "least-squares"
    needs = frozenset({"activations"})
    scope = "unit"
    damping: float = option(1e-4, "added to the diagonal, relative to its mean", low=0)
    _gram: torch.Tensor | float = attrs.field(default=0.0, init=False)

    def observe(self, seen):
        inputs = seen.layer.inputs_at(seen.inputs, slice(None)).flatten(1, 2).double()  # [G, samples, fan]
        self._gram = self._gram + inputs.mT @ inputs

    def score(self, weight, generator):
        return weight.abs()

    def reconstruct(self, weight, mask):
        repaired = weight.clone()
        scale = self.damping * self._gram.diagonal(dim1=1, dim2=2).mean()
        for group, unit in torch.cartesian_prod(torch.arange(len(mask)), torch.arange(mask.shape[1])).tolist():
            kept, gram = mask[group, unit], self._gram[group]
            target = gram[kept] @ weight[group, unit].double()
            damped = gram[kept][:, kept] + scale * torch.eye(int(kept.sum()))
            repaired[group, unit, kept] = torch.linalg.solve(damped, target).to(weight.dtype)
        return repaired


@attrs.frozen
class Cubic(Schedule):
    """A gradual schedule: cubic from dense to the target within one stage (Zhu and Gupta, 2017)."""

    name = "cubic"
    updates: int = option(4, "mask updates in the stage", low=1)

    def plan(self, request):
        def densities(done):
            return {layer: final + (1 - final) * (1 - done) ** 3 for layer, final in request.structure}

        count = self.updates
        updates = tuple(MaskUpdate(index / count, densities((index + 1) / count)) for index in range(count))
        return Plan((Stage("cubic", request.training, updates),))


@attrs.frozen
class Evolving(Schedule):
    """A regrowing schedule: prune a third of the kept and grow as many, at fixed density (SET, RigL)."""

    name = "evolving"
    by: str = option("gradient", "what decides about growth", choices=("gradient", "random"))

    def plan(self, request):
        targets = dict(request.structure)
        first = MaskUpdate(0.0, targets)
        exchanges = [MaskUpdate(at, targets, grow=Grow(self.by, 1 / 3)) for at in (0.25, 0.5, 0.75)]
        return Plan((Stage("evolving", request.training, (first, *exchanges)),))


@attrs.frozen
class Rewinding(Schedule):
    """A rewinding schedule: train, prune, go back to early weights, train again (lottery ticket)."""

    name = "rewinding"
    step: int = option(0, "step to go back to; 0: the first weights", low=0)

    def plan(self, request):
        start = Start("step", self.step) if self.step else Start("initial")
        half = MaskUpdate(0.0, {layer: density**0.5 for layer, density in request.structure})
        full = MaskUpdate(0.0, dict(request.structure))
        rounds = (
            Stage(f"round {index}", request.retraining, (update,), start)
            for index, update in enumerate([half, full], 1)
        )
        return Plan((Stage("dense", request.training), *rounds))


class Toys:
    """Brings all five, and notes what the engine does."""

    def __init__(self):
        self.updates = []

    @hookimpl
    def prunekit_criteria(self):
        return [Taylor, LeastSquares]

    @hookimpl
    def prunekit_schedules(self):
        return [Cubic, Evolving, Rewinding]

    @hookimpl
    def prunekit_masks_updated(self, event: MasksUpdated):
        self.updates.append(event)


RECIPE = {"structure": "hidden=1/4 conv_b=1/2", "training": {"budget": "40 steps", "retraining": "10 steps"}}


def initial_network(prepared):
    return prepared.task.deployed(prepared.build_model("initial weights"))


def assert_dropped_are_zero(prepared, folder):
    for name, mask in load_masks(folder.masks).tensors.items():
        dropped = prepared.network.get_parameter(name).detach()[~mask]
        assert torch.equal(dropped, torch.zeros_like(dropped))


@pytest.mark.parametrize("plugin", [Taylor, LeastSquares, Cubic, Evolving, Rewinding])
def test_each_toy_plugin_has_under_thirty_lines(plugin):
    assert len(inspect.getsource(plugin).splitlines()) < 30


@pytest.mark.parametrize("criterion", ["first-order", "least-squares"])
def test_a_criterion_with_gradients_or_reconstruction_runs(toy_run, criterion):
    finished, prepared, folder = toy_run({**RECIPE, "criterion": {"name": criterion}}, [Toys()])
    assert finished.stages[-1].kept["hidden"] == 288
    assert finished.stages[-1].kept["conv_b"] == 144
    assert finished.stages[-1].evaluation.metrics["accuracy"] > 0.8
    assert_dropped_are_zero(prepared, folder)


def test_reconstruction_brings_the_outputs_of_the_layer_closer(toy_run):
    def outputs(criterion, density):
        recipe = {
            "structure": f"hidden={density}",
            "training": {"budget": "40 steps", "retraining": "0 steps"},
            "criterion": {"name": criterion},
            "schedule": {"name": "layerwise", "scope": "unit"},
        }
        _, prepared, _ = toy_run(recipe, [Toys()], out=f"{criterion}-{density}")
        seen = []
        prepared.network.hidden.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach()))
        for images, _ in prepared.task.batches("calibration", 0, Seeds(0)):
            prepared.network(images)
        return torch.cat(seen)

    dense = outputs("magnitude", 1)
    repaired, masked = outputs("least-squares", 0.25), outputs("magnitude", 0.25)
    assert (repaired - dense).norm() < 0.7 * (masked - dense).norm()


def test_a_gradual_schedule_prunes_step_by_step_within_a_stage(toy_run):
    toys = Toys()
    _, prepared, folder = toy_run({**RECIPE, "schedule": {"name": "cubic"}}, [toys])
    assert [event.step for event in toys.updates] == [0, 10, 20, 30]
    kept = [event.layers["hidden"].kept for event in toys.updates]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == 288
    assert_dropped_are_zero(prepared, folder)


@pytest.mark.parametrize("by", ["gradient", "random"])
def test_a_regrowing_schedule_keeps_the_density_and_exchanges_connections(toy_run, by):
    toys = Toys()
    _, prepared, folder = toy_run({**RECIPE, "schedule": {"name": "evolving", "by": by}}, [toys])
    assert [event.layers["hidden"].kept for event in toys.updates] == [288] * 4
    assert_dropped_are_zero(prepared, folder)
    _, _, still = toy_run({**RECIPE, "schedule": {"name": "cubic", "updates": 1}}, [Toys()], out="still")
    exchanged = load_masks(folder.masks).compare(load_masks(still.masks))["hidden.weight"]
    assert exchanged.only_first == exchanged.only_second > 50


def test_a_rewinding_schedule_restores_the_first_weights_to_the_last_bit(toy_run):
    recipe = {**RECIPE, "training": {"budget": "40 steps", "retraining": "0 steps"}}
    _, prepared, folder = toy_run({**recipe, "schedule": {"name": "rewinding"}}, [Toys()])
    expected = initial_network(prepared)
    load_masks(folder.masks).apply(expected)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(prepared.network.state_dict()[name], tensor)


def test_a_rewinding_schedule_restores_the_weights_of_a_step_to_the_last_bit(toy_run):
    training = {"budget": "40 steps", "retraining": "0 steps", "decay": "constant"}
    schedule = {"name": "rewinding", "step": 13}
    _, prepared, folder = toy_run({**RECIPE, "training": training, "schedule": schedule}, [Toys()])
    short = {"structure": "*=1", "training": {**training, "budget": "13 steps"}}
    _, reference, _ = toy_run(short, out="short")
    load_masks(folder.masks).apply(reference.network)
    for name, tensor in reference.network.state_dict().items():
        assert torch.equal(prepared.network.state_dict()[name], tensor)


def test_rewinding_to_a_step_that_never_comes_is_refused_before_training(toy_run):
    with pytest.raises(ConfigError, match="starts from step 999, but the stages before it have only 40 steps"):
        toy_run({**RECIPE, "schedule": {"name": "rewinding", "step": 999}}, [Toys()])


@attrs.frozen
class Exchanging(Schedule):
    """Drops half of the kept at once and lets all of them come back, in the middle of a stage."""

    name = "exchanging"

    def plan(self, request):
        targets = dict(request.structure)
        grow = MaskUpdate(0.5, dict.fromkeys(targets, 1.0), grow=Grow("random", 0.5))
        return Plan((Stage("exchanging", request.training, (grow,)),))


def test_what_is_dropped_and_grown_in_one_update_starts_from_zero(toy_run):
    seen = []

    class Watcher:
        @hookimpl
        def prunekit_schedules(self):
            return [Exchanging]

        @hookimpl
        def prunekit_layer_views(self, module):
            if isinstance(module, ToyNetwork):
                seen.append(module)

        @hookimpl
        def prunekit_masks_updated(self, event):
            seen.append(int((seen[0].hidden.weight == 0).sum()))

    recipe = {"structure": "hidden=1/2", "training": {"budget": "10 steps"}, "schedule": {"name": "exchanging"}}
    toy_run(recipe, [Watcher()])
    assert seen[-1] == 576
