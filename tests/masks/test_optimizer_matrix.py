"""Each optimiser of torch.optim in each of its forms, with each thing that training loops do around a step.

After every step all dropped weights are +0.0. At the end the kept ones are compared with a reference that multiplies
the mask in the forward pass (the paper's dropping matrix) and leaves the dropped weights behind at what they were,
except where those count: then it starts with zeros there.
The table in docs/guide/optimizers.md is made of the same lists, and a test compares the two.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.masks.masks import Masks

pytestmark = pytest.mark.thorough

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "optimizers.md"

OPTIMIZERS: list[tuple[type[Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
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
    (torch.optim.Rprop, {}),
    (torch.optim.Rprop, {"maximize": True}),
    (torch.optim.ASGD, {"weight_decay": 0.1, "t0": 2}),
    (torch.optim.ASGD, {"maximize": True}),
    (torch.optim.Adafactor, {"weight_decay": 0.1}),
    (torch.optim.Adafactor, {"maximize": True}),
    (torch.optim.LBFGS, {"lr": 0.1, "max_iter": 4}),
    *([(torch.optim.Muon, {"weight_decay": 0.1})] if hasattr(torch.optim, "Muon") else []),
]
FORMS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
FUSED = {"SGD", "Adam", "AdamW", "Adagrad"}
ONE_FORM = {"LBFGS", "Muon"}
SEES_WHOLE_WEIGHTS = {"Adafactor"}  # its step is as long as the root mean square of the weight, dropped entries too


@attrs.frozen
class Setting:
    """What a training loop does around its steps."""

    name: str
    dtype: torch.dtype = torch.float32
    clip: Callable[[list[nn.Parameter]], object] | None = None
    set_to_none: bool = True
    backwards: int = 1
    groups: str = "one"
    schedule: bool = False
    scaler: bool = False
    compiled: str = ""


SETTINGS = [
    Setting("plain"),
    Setting("float64", dtype=torch.float64),
    Setting("bfloat16", dtype=torch.bfloat16),
    Setting("norm clipped", clip=lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.5)),
    Setting("value clipped", clip=lambda parameters: nn.utils.clip_grad_value_(parameters, 0.05)),
    Setting("gradients kept", set_to_none=False),
    Setting("accumulation", backwards=3),
    Setting("two groups", groups="two"),
    Setting("group added", groups="later"),
    Setting("schedule", schedule=True),
    Setting("scaler", scaler=True),
    Setting("compiled model", compiled="model"),
    Setting("compiled step", compiled="step"),
]


def forms(kind: type[Optimizer]) -> list[str]:
    return ["for-loop"] if kind.__name__ in ONE_FORM else [form for form in FORMS if form != "fused" or fused(kind)]


def fused(kind: type[Optimizer]) -> bool:
    return kind.__name__ in FUSED


def possible(kind: type[Optimizer], form: str, setting: Setting) -> bool:
    """Say what PyTorch itself can do: LBFGS takes one group and no scaler; compiling is for one form."""
    if kind is torch.optim.LBFGS:
        return setting.groups == "one" and not setting.scaler and setting.compiled != "step"
    return not setting.compiled or form == forms(kind)[min(1, len(forms(kind)) - 1)]


MATRIX = [
    pytest.param(
        kind,
        options,
        form,
        setting,
        id="-".join([kind.__name__, *(f"{key}={value}" for key, value in options.items()), form, setting.name]),
        marks=[pytest.mark.slow] if setting.compiled and kind.__name__ not in {"SGD", "AdamW"} else [],
    )
    for kind, options in OPTIMIZERS
    for form in forms(kind)
    for setting in SETTINGS
    if possible(kind, form, setting)
]


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


def random_masks() -> Masks:
    generator = torch.Generator().manual_seed(1)
    return Masks(
        {
            name: torch.rand(parameter.shape, generator=generator) < 0.4
            for name, parameter in Net().named_parameters()
            if parameter.dim() > 1
        }
    )


def made(
    kind: type[Optimizer], options: dict[str, Any], setting: Setting, masks: Masks | None = None
) -> tuple[Net, Optimizer, list[nn.Parameter]]:
    """Return a model, its optimiser and the parameters that are to be added later."""
    model = Net(masks).to(setting.dtype)
    if kind is torch.optim.LBFGS:  # flattens gradients with view
        model.to(memory_format=torch.contiguous_format)
    if kind.__name__ == "Muon":  # is for matrices
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.dim() == 2)
    first, *others = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if setting.groups == "one":
        return model, kind([first, *others], **options), []
    if setting.groups == "two":
        return model, kind([{"params": [first], "lr": 0.01}, {"params": others}], **options), []
    return model, kind([first], **options), others


def train(
    model: nn.Module, optimizer: Optimizer, later: list[nn.Parameter], setting: Setting, check: Callable[[], None]
) -> None:
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) if setting.schedule else None
    forward = torch.compile(model, backend="aot_eager") if setting.compiled == "model" else model
    take_step = torch.compile(optimizer.step, backend="aot_eager") if setting.compiled == "step" else optimizer.step
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=setting.scaler)
    generator = torch.Generator().manual_seed(0)
    for number in range(4):
        inputs = torch.randn(setting.backwards, 8, 2, 4, 4, generator=generator).to(setting.dtype)
        targets = torch.randint(3, (setting.backwards, 8), generator=generator)
        if setting.scaler and number == 1:  # this step is skipped
            inputs[0, 0, 0, 0, 0] = torch.inf

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            optimizer.zero_grad(set_to_none=setting.set_to_none)
            for batch, labels in zip(inputs, targets, strict=True):
                with torch.autocast("cpu", torch.float16, enabled=setting.scaler):
                    loss = nn.functional.cross_entropy(forward(batch), labels)
                scaler.scale(loss).backward()
            if setting.clip:
                setting.clip(list(model.parameters()))
            return loss

        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)  # type: ignore[arg-type]
        else:
            closure()
            scaler.step(optimizer) if setting.scaler else take_step()
            scaler.update()
        check()
        if scheduler:
            scheduler.step()
        if number == 1 and later:
            optimizer.add_param_group({"params": later, "lr": 0.01})


def is_positive_zero(tensor: Tensor) -> bool:
    return bool((tensor == 0).all()) and not bool(tensor.signbit().any())


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # compiling a step, torch itself uses it
@pytest.mark.parametrize(("kind", "options", "form", "setting"), MATRIX)
def test_zeros_remain_and_kept_weights_move_as_if_the_forward_pass_multiplied_by_the_mask(
    kind: type[Optimizer], options: dict[str, Any], form: str, setting: Setting
) -> None:
    masks = random_masks()
    options = {**options, **({} if kind.__name__ in ONE_FORM else FORMS[form])}
    model, optimizer, later = made(kind, options, setting)
    reference, other, other_later = made(kind, options, setting, masks)
    if kind.__name__ in SEES_WHOLE_WEIGHTS:
        masks.apply(reference)
    before = model.first.weight.detach().clone()

    def check() -> None:
        for name, mask in masks.tensors.items():
            assert is_positive_zero(model.get_parameter(name).detach()[~mask])

    torch.compiler.reset()
    with masks.hold(model, optimizer):
        train(model, optimizer, later, setting, check)
    train(reference, other, other_later, setting, lambda: None)
    for name, parameter in model.named_parameters():
        mask = masks.tensors.get(name, torch.ones_like(parameter, dtype=torch.bool))
        kept, expected = parameter[mask], reference.get_parameter(name)[mask]
        assert bool(kept.isfinite().all())
        assert torch.equal(kept, expected)
    assert not torch.equal(model.first.weight[masks.tensors["first.weight"]], before[masks.tensors["first.weight"]])


def table() -> str:
    """Return what stands on the page: one line for each optimiser, one column for each setting."""
    kinds = list(dict.fromkeys(kind for kind, _ in OPTIMIZERS))
    lines = [["optimiser", "with", "forms", *(setting.name for setting in SETTINGS)]]
    lines.append(["---"] * len(lines[0]))
    for kind in kinds:
        options = sorted({option for other, used in OPTIMIZERS for option in used if other is kind})
        equal = "0" if kind.__name__ in SEES_WHOLE_WEIGHTS else "="
        cells = [equal * sum(possible(kind, form, setting) for form in forms(kind)) or "-" for setting in SETTINGS]
        lines.append([kind.__name__, ", ".join(options), ", ".join(forms(kind)), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def test_the_page_shows_the_matrix_that_runs() -> None:
    assert table() in PAGE.read_text(), f"put this into {PAGE.name}:\n\n{table()}"
