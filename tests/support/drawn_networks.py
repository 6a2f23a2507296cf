"""Random networks for property tests: chains and residual networks with channels to remove."""

import copy

import torch
from hypothesis import strategies as st
from torch import nn

ACTIVATIONS = (nn.ReLU(), nn.ReLU(inplace=True), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.Identity())


PADDINGS = ("zeros", "zeros", "reflect", "replicate", "circular")


class Residual(nn.Module):
    """Two branches that are added, concatenated, or multiplied."""

    def __init__(self, channels, groups, how, inplace):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.second = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)
        self.how, self.inplace = how, inplace

    def forward(self, values):
        first, second = self.first(values), self.second(values)
        if self.how == "cat":
            return torch.cat([first, second], 1)
        if self.how == "gate":
            return first * second.mean((2, 3), keepdim=True).sigmoid()
        if self.inplace:
            first += second + values
            return first
        return first + second + values


@st.composite
def networks(draw):
    """Draw a convolutional network in double precision, with rows, columns and single weights that are 0."""
    layers, channels, size = [], draw(st.integers(1, 3)), 8
    inputs = channels
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("conv", "conv", "residual", "pool")))
        if kind == "conv" and size >= 3:
            groups = draw(st.sampled_from([g for g in (1, 2, channels) if channels % g == 0]))
            kernel, outputs = draw(st.sampled_from((1, 2, 3))), groups * draw(st.integers(1, 4))
            padding = draw(st.integers(0, min(kernel - 1, 1)))
            mode = draw(st.sampled_from(PADDINGS))
            layers.append(nn.Conv2d(channels, outputs, kernel, 1, padding, 1, groups, draw(st.booleans()), mode))
            channels, size = outputs, size + 2 * padding - kernel + 1
            if draw(st.booleans()):
                layers.append(nn.BatchNorm2d(channels, affine=draw(st.booleans())))
            layers.append(copy.deepcopy(draw(st.sampled_from(ACTIVATIONS))))
        elif kind == "residual":
            how, groups = draw(st.sampled_from(("add", "cat", "gate"))), draw(st.sampled_from((1, channels)))
            layers.append(Residual(channels, groups, how, draw(st.booleans())))
            channels *= 2 if how == "cat" else 1
        elif size >= 4:
            padding = draw(st.integers(0, 1))
            pools = (nn.MaxPool2d(2, padding=padding), nn.AvgPool2d(2, padding=padding), nn.Upsample(scale_factor=0.5))
            pool = draw(st.sampled_from(pools))
            layers.append(pool)
            size = len(pool(torch.zeros(1, 1, size, size))[0, 0])
    if draw(st.booleans()):
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    else:
        layers.append(nn.Flatten())
        channels *= size * size
    for _ in range(draw(st.integers(0, 2))):
        outputs = draw(st.integers(1, 5))
        layers += [nn.Linear(channels, outputs, bias=draw(st.booleans())), nn.Dropout()]
        channels = outputs
        if draw(st.booleans()):
            layers.append(nn.BatchNorm1d(channels))
        layers.append(copy.deepcopy(draw(st.sampled_from(ACTIVATIONS))))
    network = nn.Sequential(*layers, nn.Linear(channels, 3)).double()
    fill(network, draw(st.integers(0, 2**31)))
    return network, inputs


def fill(network, seed):
    """Draw all weights and statistics; whole units, whole input channels and half of the other weights are 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
            for parameter in module.parameters(recurse=False):
                parameter.normal_(generator=generator)
            if isinstance(module, nn.Linear | nn.Conv2d):
                weight = module.weight
                weight[torch.rand(len(weight), generator=generator) < 0.5] = 0
                weight[:, torch.rand(weight.shape[1], generator=generator) < 0.3] = 0
                weight[torch.rand(weight.shape, generator=generator) < 0.3] = 0


def images(channels, count=3, seed=0):
    return torch.randn(count, channels, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def residual():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        Residual(6, 1, "add", inplace=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    ).double()
