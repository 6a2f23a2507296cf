import copy
import gc
import io
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.errors import MaskError
from prunekit.masks.holding import _KEEP_ZEROS, Held, _keeps_zeros
from prunekit.masks.masks import Masks

OPTIMIZERS: list[tuple[type[Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "maximize": True}),
    (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}),
    *(
        (kind, {"weight_decay": 0.1, **more})
        for kind in (torch.optim.Adam, torch.optim.AdamW)
        for more in ({}, {"amsgrad": True}, {"maximize": True})
    ),
    (torch.optim.NAdam, {"weight_decay": 0.1}),
    (torch.optim.NAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}),
    (torch.optim.RAdam, {"weight_decay": 0.1}),
    (torch.optim.RAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}),
    (torch.optim.Adamax, {"weight_decay": 0.1}),
    (torch.optim.Adamax, {"maximize": True}),
    (torch.optim.Adagrad, {"weight_decay": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    (torch.optim.Adagrad, {"maximize": True}),
    (torch.optim.Adadelta, {"weight_decay": 0.1}),
    (torch.optim.Adadelta, {"maximize": True}),
    (torch.optim.RMSprop, {"weight_decay": 0.1, "momentum": 0.9, "centered": True}),
    (torch.optim.RMSprop, {"maximize": True}),
]
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
FORMS = [
    (kind, {**options, **form})
    for kind, options in OPTIMIZERS
    for form in ({"foreach": False}, {"foreach": True}, *([{"fused": True}] if kind in FUSED else []))
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small are only slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def spelled(case: Any) -> str:
    return case.__name__ if isinstance(case, type) else "-".join(f"{key}={value}" for key, value in case.items())


def is_positive_zero(tensor: Tensor) -> bool:
    return bool((tensor == 0).all()) and not bool(tensor.signbit().any())


class Net(nn.Module):
    """A convolution in channels_last and two linear layers; ``masks`` multiplies in the forward pass, the reference."""

    def __init__(self, masks: Masks | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(2, 6, 3).to(memory_format=torch.channels_last)
        self.first = nn.Linear(24, 7)
        self.last = nn.Linear(7, 3, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        self._masks = masks

    def weight(self, name: str) -> Tensor:
        parameter = self.get_parameter(name)
        return parameter if self._masks is None else parameter * self._masks.tensors[name]

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = nn.functional.conv2d(inputs, self.weight("conv.weight"), self.conv.bias).relu().flatten(1)
        hidden = nn.functional.linear(hidden, self.weight("first.weight"), self.first.bias).relu()
        return nn.functional.linear(hidden, self.weight("last.weight"))


def random_masks(model: nn.Module, seed: int = 1, density: float = 0.4) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    return Masks(
        {
            name: torch.rand(parameter.shape, generator=generator) < density
            for name, parameter in model.named_parameters()
            if parameter.dim() > 1
        }
    )


def backward(model: nn.Module, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    inputs = torch.randn(8, 2, 4, 4, generator=generator).to(dtype)
    targets = torch.randint(3, (8,), generator=generator)
    loss = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def train(model: nn.Module, optimizer: Optimizer, steps: int = 4) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def dropped(model: nn.Module, masks: Masks) -> Tensor:
    return torch.cat([model.get_parameter(name).detach()[~mask] for name, mask in masks.tensors.items()])


@pytest.mark.parametrize(("kind", "options"), FORMS, ids=spelled)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_optimisers_on_the_list_keep_a_zero_weight_at_zero_by_themselves(
    kind: type[Optimizer], options: dict[str, Any], dtype: torch.dtype, zero: float
) -> None:
    weight = nn.Parameter(torch.zeros(40, dtype=dtype))
    optimizer = kind([weight], **{**options, **({"initial_accumulator_value": 0} if "lr_decay" in options else {})})
    for _ in range(8):
        weight.grad = torch.full_like(weight, zero)
        optimizer.step()
        assert is_positive_zero(weight.detach())


@pytest.mark.parametrize("kind", sorted(_KEEP_ZEROS, key=lambda kind: kind.__name__))
def test_a_step_masks_no_weight_if_the_optimiser_keeps_zeros(kind: type[Optimizer]) -> None:
    model = Net()
    masks = random_masks(model)
    optimizer = kind(model.parameters())
    with masks.hold(model, optimizer) as held:
        assert _keeps_zeros(optimizer, held._least_eps)


def test_weights_are_masked_after_an_optimiser_that_divides_zero_by_zero() -> None:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), eps=0.0)
    masks = random_masks(model, density=0.9)
    with masks.hold(model, optimizer):
        train(model, optimizer)
    assert is_positive_zero(dropped(model, masks))


class Noisy(torch.optim.SGD):
    """A subclass that moves every weight."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(0.01)


def test_an_unknown_optimiser_cannot_change_a_dropped_weight() -> None:
    model = Net()
    optimizer = Noisy(model.parameters(), lr=0.1)
    masks = random_masks(model)
    with masks.hold(model, optimizer):
        train(model, optimizer)
        assert is_positive_zero(dropped(model, masks))
    train(model, optimizer, steps=1)
    assert not bool((dropped(model, masks) == 0).any())


def test_clipping_sees_masked_gradients() -> None:
    model = Net()
    masks = random_masks(model)
    optimizer = torch.optim.SGD(model.parameters())
    with masks.hold(model, optimizer):
        for _ in range(2):  # accumulated
            backward(model)
    for name, mask in masks.tensors.items():
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert is_positive_zero(gradient[~mask])
        assert bool((gradient[mask] != 0).any())


def test_gradients_set_by_hand_and_of_unfrozen_weights_are_masked_too() -> None:
    model = Net()
    masks = random_masks(model)
    model.first.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with masks.hold(model, optimizer):
        train(model, optimizer)
        assert not model.first.weight.requires_grad
        model.first.weight.requires_grad_(True)
        train(model, optimizer)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert is_positive_zero(dropped(model, masks))


def test_parameter_groups_added_later_and_learning_rate_schedules_change_nothing() -> None:
    model = Net()
    masks = random_masks(model)
    optimizer = torch.optim.AdamW([model.conv.weight, model.first.weight])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    with masks.hold(model, optimizer):
        train(model, optimizer)
        optimizer.add_param_group({"params": [model.last.weight], "lr": 0.1, "eps": 0.0})
        scheduler.step()
        train(model, optimizer)
        assert is_positive_zero(dropped(model, masks))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.Rprop])
def test_an_update_zeroes_what_it_drops_and_regrows_from_zero(kind: type[Optimizer]) -> None:
    model = Net()
    optimizer = kind(model.parameters())
    old, new = random_masks(model, 1), random_masks(model, 2)
    with old.hold(model, optimizer) as held:
        train(model, optimizer)
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        held.update(new)
        assert held.masks == new
        assert is_positive_zero(dropped(model, new & old))
        for name, stayed in (new & old).tensors.items():
            assert torch.equal(model.get_parameter(name)[stayed], before[name][stayed])
            for value in optimizer.state[model.get_parameter(name)].values():
                if isinstance(value, Tensor) and value.dim():
                    assert is_positive_zero(value[~stayed])
        train(model, optimizer)
        assert is_positive_zero(dropped(model, new))
        regrown = torch.cat([model.get_parameter(name)[mask] for name, mask in (new - old).tensors.items()])
        assert bool((regrown != 0).any())


def test_an_update_that_does_not_fit_changes_nothing() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks = random_masks(model)
    with masks.hold(model, optimizer) as held:
        with pytest.raises(MaskError, match="no parameter 'x'"):
            held.update(Masks({"x": torch.ones(2, dtype=torch.bool)}))
        train(model, optimizer)
        assert held.masks is masks
        assert is_positive_zero(dropped(model, masks))
    with pytest.raises(MaskError, match="no parameter 'x'"):
        Held(Masks({"x": torch.ones(2, dtype=torch.bool)}), model, optimizer)


def test_a_paused_hold_leaves_gradients_unmasked_and_masks_them_afterwards() -> None:
    model, dense = Net(), Net()
    masks = random_masks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with masks.hold(model, optimizer) as held:
        masks.apply(dense)
        backward(dense)
        with held.paused():
            backward(model)
            for name in masks.tensors:
                assert torch.equal(model.get_parameter(name).grad, dense.get_parameter(name).grad)
        for name, mask in masks.tensors.items():
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            assert is_positive_zero(gradient[~mask])
        with held.paused():
            backward(model)
            optimizer.step()
        assert is_positive_zero(dropped(model, masks))


def test_loading_an_optimiser_state_masks_it_and_the_weights_loaded_before() -> None:
    dense, model = Net(), Net()
    other, optimizer = torch.optim.Adam(dense.parameters()), torch.optim.Adam(model.parameters())
    train(dense, other)
    masks = random_masks(model)
    with masks.hold(model, optimizer):
        model.load_state_dict(dense.state_dict())
        optimizer.load_state_dict(other.state_dict())
        assert is_positive_zero(dropped(model, masks))
        for name, mask in masks.tensors.items():
            assert is_positive_zero(optimizer.state[model.get_parameter(name)]["exp_avg"][~mask])
        train(model, optimizer)
        assert is_positive_zero(dropped(model, masks))
    assert not optimizer._optimizer_load_state_dict_post_hooks


def test_masks_that_keep_everything_leave_no_trace() -> None:
    model = Net()
    masks = Masks({name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()})
    with masks.hold(model, torch.optim.SGD(model.parameters())) as held:
        assert not held._gates
        assert all(not parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_detach_removes_all_hooks_and_attach_may_be_called_again() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks = random_masks(model)
    held = masks.hold(model, optimizer).attach().attach()
    held.detach()
    held.detach()
    assert all(not parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    train(model, optimizer)
    assert not bool((dropped(model, masks) == 0).all())
    held.attach()
    train(model, optimizer)
    assert is_positive_zero(dropped(model, masks))
    assert len(optimizer._optimizer_step_post_hooks) == 1


def saved(thing: Any) -> Any:
    """Save a model or an optimiser whole, as some do, and read its state back, as all should."""
    torch.save(thing, io.BytesIO())
    buffer = io.BytesIO()
    torch.save(thing.state_dict(), buffer)
    buffer.seek(0)
    other = copy.deepcopy(thing)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    return other


@pytest.mark.parametrize("action", [copy.deepcopy, saved])
def test_a_held_model_is_copied_and_saved_as_before(action: Callable[[Any], Any]) -> None:
    model = Net()
    before = list(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters())
    with random_masks(model).hold(model, optimizer):
        train(model, optimizer)
        copied, copied_optimizer = action(model), action(optimizer)
        assert list(model.state_dict()) == before
        for name, value in model.state_dict().items():
            assert torch.equal(copied.state_dict()[name], value)
        assert not copied.first.weight._post_accumulate_grad_hooks
        assert copied_optimizer.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_a_held_model_without_references_is_freed() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters())
    held = random_masks(model).hold(model, optimizer).attach()
    train(model, optimizer)
    parameter = weakref.ref(model.first.weight)
    del model, optimizer, held
    gc.collect()
    assert parameter() is None


def test_tied_weights_are_held_once() -> None:
    model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7, bias=False))
    model[1].weight = model[0].weight
    masks = Masks({"1.weight": torch.rand(7, 3) < 0.5})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with masks.hold(model, optimizer) as held:
        assert len(held._gates) == 1
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.arange(7)).square().sum().backward()
            optimizer.step()
        assert is_positive_zero(model[0].weight.detach()[~masks.tensors["1.weight"]])


def test_sparse_gradients_are_refused_with_the_next_step() -> None:
    model = nn.Embedding(7, 3, sparse=True)
    masks = Masks({"weight": torch.zeros(7, 3, dtype=torch.bool)})
    with masks.hold(model, torch.optim.SGD(model.parameters())), pytest.raises(MaskError, match="sparse=False"):
        model(torch.arange(3)).sum().backward()


def test_gradients_in_another_memory_layout_than_the_weight_are_masked_correctly() -> None:
    model = nn.Conv2d(3, 4, 3)
    masks = Masks({"weight": torch.rand(4, 3, 3, 3) < 0.5})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with masks.hold(model, optimizer):
        model.weight.grad = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
        expected = torch.where(masks.tensors["weight"], model.weight - 0.1 * model.weight.grad, 0.0)
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), expected.detach())
    assert is_positive_zero(model.weight.detach()[~masks.tensors["weight"]])
