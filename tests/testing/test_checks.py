from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from prunekit.contracts.criterion import Criterion, NetworkCriterion, Scene
from prunekit.contracts.options import option
from prunekit.contracts.schedule import Budget, Grow, MaskUpdate, Plan, PlanRequest, Schedule, Stage
from prunekit.contracts.seeds import Seeds
from prunekit.masks.selection import Quota
from prunekit.plugins.manager import make_manager
from prunekit.plugins.registry import collect
from prunekit.testing import ToyTask, check_criterion, check_schedule, check_task

REGISTRY = collect(make_manager(third_party=False))


@pytest.mark.thorough
@pytest.mark.parametrize("name", REGISTRY.criteria)
def test_every_built_in_criterion_keeps_the_contract(name: str) -> None:
    check_criterion(REGISTRY.criteria[name].cls)


@pytest.mark.parametrize("name", REGISTRY.schedules)
def test_every_built_in_schedule_keeps_the_contract(name: str) -> None:
    check_schedule(REGISTRY.schedules[name].cls)


@pytest.mark.parametrize("options", [{}, {"classes": 2, "noise": 0.5}])
def test_the_toy_task_keeps_the_contract(options: dict[str, Any]) -> None:
    check_task(ToyTask, **options)


def test_the_toy_task_can_be_learned_within_its_own_budget() -> None:
    task, seeds = ToyTask(), Seeds(0)
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = task.optimizer(model)
    for step in range(60):
        batches = task.batches("train", step // 10, seeds)
        optimizer.zero_grad()
        task.loss(model, batches[step % 10]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.inference_mode():
        assert task.evaluate(model, torch.device("cpu")).metrics["accuracy"] > 0.9


@attrs.define
class Good(Criterion):
    name = "good"

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return weight.abs()


class WrongShape(Good):
    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return weight.abs().sum(-1)


class Undefined(Good):
    needs = frozenset({"activations"})

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return weight / 0 * 0


class Unrepeatable(Good):
    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return torch.rand_like(weight)


class Miscounting(Good):
    def select(self, scores: Tensor, quota: Quota, generator: torch.Generator) -> Tensor:
        return scores > scores.median()


class Reviving(Good):
    def select(self, scores: Tensor, quota: Quota, generator: torch.Generator) -> Tensor:
        order = torch.rand(scores.numel(), generator=generator).argsort()
        mask = torch.zeros(scores.numel(), dtype=torch.bool)
        mask[order[: round(quota.density * scores.numel())]] = True
        return mask.roll(int(quota.candidates is not None)).reshape(scores.shape)


class Exploding(Good):
    def reconstruct(self, weight: Tensor, mask: Tensor) -> Tensor:
        return weight / 0


@attrs.define(eq=False)
class Whole(NetworkCriterion):
    """Sums what comes out of the network, and its losses, by weight."""

    name = "whole"

    def survey(self, scene: Scene) -> dict[str, Tensor]:
        assert scene.network is scene.model
        outputs = sum(scene.forward(batch).sum() for batch in scene.batches())
        assert not scene.model.training
        loss = sum(scene.losses())
        weights = [view.weight for view in scene.layers.values()]
        sums = zip(torch.autograd.grad(outputs, weights), torch.autograd.grad(loss, weights), strict=True)
        return {
            name: view.to_matrix(one + other)
            for (name, view), (one, other) in zip(scene.layers.items(), sums, strict=True)
        }


class Partial(Whole):
    def survey(self, scene: Scene) -> dict[str, Tensor]:
        return {name: scores for name, scores in super().survey(scene).items() if name != "hidden"}


class Flat(Whole):
    def survey(self, scene: Scene) -> dict[str, Tensor]:
        return {name: scores.flatten() for name, scores in super().survey(scene).items()}


class Local(Good):
    needs = frozenset({"network"})


@pytest.mark.thorough
def test_a_criterion_of_the_whole_network_keeps_the_contract() -> None:
    check_criterion(Whole)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (Partial, "found no scores of layer 'hidden'"),
        (Flat, "scored layer 'conv_a' with torch.float32 .72,., expected floats"),
        (Local, 'it must both need "network" and subclass prunekit.NetworkCriterion'),
        (WrongShape, "expected floats"),
        (Undefined, "NaN"),
        (Unrepeatable, "another mask the second time"),
        (Miscounting, "expected exactly"),
        (Reviving, "comes back"),
        (Exploding, "reconstruct returns NaN or infinite weights"),
        (ToyTask, "ToyTask is not a criterion: it is not a subclass"),
    ],
)
def test_a_criterion_that_breaks_its_contract_fails_with_a_sentence(cls: Any, sentence: str) -> None:
    check_criterion(Good)
    with pytest.raises(AssertionError, match=sentence):
        check_criterion(cls)


def test_a_wrong_option_is_a_failed_check() -> None:
    with pytest.raises(AssertionError, match="has no option 'power'"):
        check_criterion(Good, power=2)


@attrs.define
class Broken(Schedule):
    """Breaks the contract in a chosen way."""

    name = "broken"
    way: str = option("impure", "how")

    calls = 0

    def plan(self, request: PlanRequest) -> Plan:
        type(self).calls += 1
        densities = {
            "impure": 1 / type(self).calls,
            "unfinished": 0.9,
            "percent": 50.0,
        }
        targets = {name: densities[self.way] for name, _ in request.structure}
        return Plan((Stage("only", Budget(1, "steps"), (MaskUpdate(0.0, targets),)),))


@pytest.mark.parametrize(
    ("way", "sentence"),
    [
        ("impure", "different plans for the same request"),
        ("unfinished", "ends at"),
        ("percent", "for 50 percent write 0.5"),
    ],
)
def test_a_schedule_that_breaks_its_contract_fails_with_a_sentence(way: str, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_schedule(Broken, way=way)


class Opening(Schedule):
    """Prunes and lets all back, and does not say that it ends so."""

    name = "opening"

    def plan(self, request: PlanRequest) -> Plan:
        back = MaskUpdate(0.5, {name: 1.0 for name, _ in request.structure}, grow=Grow("random"))
        return Plan((Stage("only", Budget(1, "steps"), (MaskUpdate(0.0, dict(request.structure)), back)),))


class Saying(Opening):
    ends_dense = True


def test_a_schedule_that_ends_dense_must_say_so() -> None:
    check_schedule(Saying)
    with pytest.raises(AssertionError, match="ends at"):
        check_schedule(Opening)


@attrs.define
class Misshapen(Good):
    needs = frozenset({"training"})

    def trace(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return gradient.sum()


def test_a_trace_of_a_wrong_shape_fails_the_check() -> None:
    with pytest.raises(AssertionError, match=r"Misshapen.trace returns \(\) for a weight"):
        check_criterion(Misshapen)


class Unseeded(ToyTask):
    def build_model(self) -> nn.Module:
        model = super().build_model()
        if not next(model.parameters()).is_meta:
            next(model.parameters()).data += torch.rand((), generator=torch.Generator().manual_seed(id(model)))
        return model


class Boundless(ToyTask):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return super().loss(model, batch) / 0


class Blind(ToyTask):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return model.classifier(torch.ones(1, 16)).sum()


class Misnamed(ToyTask):
    structure = "hiden=0.5"


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (Unseeded, "differs with the same seed"),
        (Boundless, "the first loss is inf"),
        (Blind, "does not reach layer 'conv_a'"),
    ],
)
def test_a_task_that_breaks_its_contract_fails_with_a_sentence(cls: Any, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_task(cls)


def test_a_tasks_own_structure_must_name_its_layers() -> None:
    with pytest.raises(AssertionError, match="did you mean 'hidden'"):
        check_task(Misnamed)
