from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

from prunekit import Masks
from prunekit.errors import ConfigError
from prunekit.runs.training.optimizers import fuse, match_memory_order

STEPS = 5
CLASSES = {
    "sgd": partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": partial(Adam, lr=0.01),
    "adamw": partial(AdamW, lr=0.01, weight_decay=0.1),
    "adagrad": partial(Adagrad, lr=0.01),
}


def convolution():
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)


def steps(model, optimizer, count=STEPS):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 6, 6, generator=generator)).square().mean().backward()
        optimizer.step()
    return model.weight.detach().clone()


@pytest.mark.parametrize("make", CLASSES.values(), ids=CLASSES)
def test_the_fused_step_is_the_plain_one(make):
    plain, fused = convolution(), convolution()
    expected = steps(plain, make(plain.parameters()))
    optimizer = make(fused.parameters())
    fuse(optimizer)
    torch.testing.assert_close(steps(fused, optimizer), expected)


@pytest.mark.parametrize("make", CLASSES.values(), ids=CLASSES)
def test_a_fused_step_leaves_dropped_weights_at_zero(make):
    model = convolution()
    mask = torch.rand(model.weight.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    optimizer = make(model.parameters())
    fuse(optimizer)
    with Masks({"weight": mask}).hold(model, optimizer):
        weight = steps(model, optimizer)
    assert torch.equal(weight != 0, mask)


def test_an_optimiser_without_a_fused_form_is_refused():
    with pytest.raises(ConfigError, match=r"RMSprop has no fused form; leave it out, or use SGD, Adam, AdamW"):
        fuse(RMSprop(convolution().parameters()))


@pytest.mark.parametrize("fused", [False, True])
def test_states_from_a_file_take_the_memory_order_of_the_weights(fused):
    model = convolution()
    optimizer = CLASSES["sgd"](model.parameters())
    if fused:
        fuse(optimizer)
    steps(model, optimizer)
    saved = deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["momentum_buffer"] = state["momentum_buffer"].contiguous()
    twin = convolution()
    twin.load_state_dict(model.state_dict())
    loaded = CLASSES["sgd"](twin.parameters())
    loaded.load_state_dict(saved)
    assert loaded.state[twin.weight]["momentum_buffer"].is_contiguous()
    match_memory_order(loaded)
    assert loaded.state[twin.weight]["momentum_buffer"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(steps(twin, loaded), steps(model, optimizer))
