import pytest
import torch

import prunekit
from prunekit.cli import main
from prunekit.contracts.markers import hookimpl
from prunekit.contracts.seeds import Seeds
from prunekit.criteria.movement import Movement
from prunekit.errors import ConfigError, PluginError
from prunekit.masks.masks import load_masks
from prunekit.plugins.manager import Source, make_manager
from prunekit.plugins.registry import collect
from prunekit.runs.preparation import prepare
from prunekit.runs.recipes import build_config
from prunekit.testing import check_criterion

STRUCTURE = {"hidden": 0.25, "conv_b": 0.5}
RECIPE = {
    "structure": "hidden=1/4 conv_b=1/2",
    "criterion": {"name": "movement"},
    "training": {"budget": "12 steps", "retraining": "7 steps", "decay": "constant"},
}


@pytest.mark.thorough
def test_it_fulfils_the_contract() -> None:
    check_criterion(Movement)


def train(prepared, model, optimizer, steps, stage, masks):
    """A plain loop: returns layer -> S = - sum of dL/dW W, in float64, over the steps of a stage under masks."""
    sums = dict.fromkeys(STRUCTURE, 0.0)
    seeds = Seeds(Seeds(0).derive("data", stage))
    model.train()
    for step in range(steps):
        batches = prepared.task.batches("train", step // 10, seeds)
        optimizer.zero_grad()
        prepared.task.loss(model, batches[step % 10]).backward()
        for name in sums:
            weight = model.get_parameter(f"{name}.weight")
            weight.grad *= masks.get(name, 1.0)
            sums[name] = sums[name] - weight.grad.double() * weight.detach().double()
        optimizer.step()
    return sums


def best(scores, count):
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().argsort(descending=True, stable=True)[:count]] = True
    return mask.reshape(scores.shape)


def prune(model, optimizer, masks):
    with torch.no_grad():
        for name, mask in masks.items():
            weight = model.get_parameter(f"{name}.weight")
            weight *= mask
            if weight in optimizer.state:
                optimizer.state[weight]["momentum_buffer"] *= mask


def test_one_shot_after_training_ranks_by_the_sum_over_the_stage_before(toy_run) -> None:
    _, prepared, folder = toy_run({**RECIPE, "schedule": {"name": "one-shot"}})
    model = prepared.build_model("initial weights")
    sums = train(prepared, model, prepared.task.optimizer(model), 12, 0, {})
    masks = load_masks(folder.masks).tensors
    assert torch.equal(masks["hidden.weight"], best(sums["hidden"], 288))
    assert torch.equal(masks["conv_b.weight"], best(sums["conv_b"], 144))


def test_layer_by_layer_the_second_is_ranked_by_the_retraining_of_the_first(toy_run) -> None:
    _, prepared, folder = toy_run({**RECIPE, "schedule": {"name": "layerwise"}})
    model = prepared.build_model("initial weights")
    sums = train(prepared, model, prepared.task.optimizer(model), 12, 0, {})
    held = {"hidden": best(sums["hidden"], 288)}
    optimizer = prepared.task.optimizer(model)
    prune(model, optimizer, held)
    sums = train(prepared, model, optimizer, 7, 1, held)
    masks = load_masks(folder.masks).tensors
    assert torch.equal(masks["hidden.weight"], held["hidden"])
    assert torch.equal(masks["conv_b.weight"], best(sums["conv_b"], 144))


def test_within_a_stage_the_sum_continues_across_updates(toy_run) -> None:
    recipe = {**RECIPE, "schedule": {"name": "gradual", "updates": 2, "end": 1.0, "curve": "linear"}}
    _, prepared, folder = toy_run(recipe)
    model = prepared.build_model("initial weights")
    optimizer = prepared.task.optimizer(model)
    totals, held = dict.fromkeys(STRUCTURE, 0.0), {}
    for start, counts in ((0, {"hidden": 720, "conv_b": 216}), (6, {"hidden": 288, "conv_b": 144})):
        seeds, last = Seeds(Seeds(0).derive("data", 0)), start + 6
        for step in range(start, last):
            optimizer.zero_grad()
            prepared.task.loss(model, prepared.task.batches("train", step // 10, seeds)[step % 10]).backward()
            for name in totals:
                weight = model.get_parameter(f"{name}.weight")
                weight.grad *= held.get(name, 1.0)
                totals[name] = totals[name] - weight.grad.double() * weight.detach().double()
            optimizer.step()
        for name, count in counts.items():
            left = totals[name].masked_fill(~held[name], -torch.inf) if name in held else totals[name]
            held[name] = best(left, count)
        prune(model, optimizer, held)
    masks = load_masks(folder.masks).tensors
    for name, mask in held.items():
        assert torch.equal(masks[f"{name}.weight"], mask)


def test_regrown_connections_are_ranked_by_their_steps_since_regrowth(toy_run) -> None:
    sums = []

    class Looker:
        """Reads the sums when masks change."""

        @hookimpl
        def prunekit_criteria(self):
            class Looking(Movement):
                name = "looking"

                def take_trace(self, total):
                    sums.append(total.clone())
                    super().take_trace(total)

            return [Looking]

    schedule = {"name": "rigl", "updates": 2, "drop": 0.5}
    toy_run({**RECIPE, "structure": "hidden=1/4", "criterion": {"name": "looking"}, "schedule": schedule}, [Looker()])
    assert len(sums) == 2
    # The first masks are drawn; what they drop has not moved.
    assert int((sums[0] != 0).sum()) <= 288
    assert int((sums[1] != 0).sum()) <= 288


def prepared_with(recipe, plugin=None):
    manager = make_manager(third_party=False)
    if plugin is not None:
        manager.add(plugin, Source("more", "tests"))
    config = build_config({"task": {"name": "prunekit.testing:ToyTask"}, **RECIPE, **recipe})
    return prepare(config, manager, collect(manager), device="meta")


def test_pruning_before_any_training_is_refused_before_the_run() -> None:
    with pytest.raises(
        ConfigError, match="'movement' ranks by what training steps did, but stage 'pruned' prunes before"
    ):
        prepared_with({"schedule": {"name": "one-shot", "when": "before"}})


def test_pruning_after_a_stage_without_steps_is_refused(toy_run) -> None:
    training = {"budget": "0 steps", "retraining": "3 steps"}
    with pytest.raises(ConfigError, match="layer 'hidden' is pruned before the first one"):
        toy_run({**RECIPE, "training": training, "schedule": {"name": "one-shot"}})


def test_select_refuses_it_with_the_next_step() -> None:
    with pytest.raises(ConfigError, match="prunekit run --criterion movement --schedule gradual"):
        prunekit.select(torch.nn.Linear(4, 4), "movement", density=0.5)


def test_a_criterion_without_trace_is_refused() -> None:
    class Forgetful:
        @hookimpl
        def prunekit_criteria(self):
            class NoTrace(prunekit.Criterion):
                name = "no-trace"
                needs = frozenset({"training"})

                def score(self, weight, generator):
                    return weight

            return [NoTrace]

    with pytest.raises(PluginError, match=r"define trace\(weight, gradient\)"):
        prepared_with({"criterion": {"name": "no-trace"}}, Forgetful())


@pytest.mark.thorough
def test_a_sweep_does_not_reuse_runs_without_sums(tmp_path, capsys) -> None:
    recipe = tmp_path / "sweep.toml"
    recipe.write_text(
        '[task]\nname = "prunekit.testing:ToyTask"\n[training]\nbudget = "6 steps"\nretraining = "3 steps"\n'
        '[schedule]\nname = "one-shot"\n[sweep]\nstructures = ["hidden=1/4"]\ncriteria = ["magnitude", "movement"]\n'
    )
    assert main(["sweep", str(recipe), "--out", str(tmp_path / "out"), "--seeds", "1", "--jobs", "1"]) == 0
    assert "movement" in capsys.readouterr().out
