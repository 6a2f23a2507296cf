"""What a held mask costs in training: a step of an MLP of 12.7 M weights, dense and under masks in three ways."""

import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from measuring import Row, interleaved
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from prunekit import Masks

BATCH = 64
DENSITY = 0.1
# Where memory happens to lie moves one and the same AdamW step between 19 and 41 ms: best median of fresh models.
ROUNDS = 6
TARGET = 1.12  # of the dense step
OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-5),
}
WAYS = ("dense", "prunekit", "torch.nn.utils.prune", "parametrize")


class Masked(nn.Module):
    """The parametrisation that multiplies by a mask, as others write it."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the masked weight."""
        return weight * self.mask


def make_step(way: str, optimizer_name: str) -> Callable[[], None]:
    """Return one training step; batches are new each time, so that no gradient fades into subnormal numbers."""
    torch.manual_seed(0)
    sizes = (784, 2560, 2560, 1600, 10)
    linears = [nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(sizes)]
    model = nn.Sequential(*(module for linear in linears for module in (linear, nn.ReLU())))[:-1]
    weights = {} if way == "dense" else {name: p for name, p in model.named_parameters() if p.dim() > 1}
    masks = {name: torch.rand_like(weight) < DENSITY for name, weight in weights.items()}
    for linear, mask in zip(linears, masks.values(), strict=False):  # none where dense
        if way == "torch.nn.utils.prune":
            prune.custom_from_mask(linear, "weight", mask)  # type: ignore[no-untyped-call]
        elif way == "parametrize":
            parametrize.register_parametrization(linear, "weight", Masked(mask))
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    if way == "prunekit":
        Masks(masks).hold(model, optimizer).attach()

    def step() -> None:
        optimizer.zero_grad()
        inputs, targets = torch.randn(BATCH, sizes[0]), torch.randint(sizes[-1], (BATCH,))
        nn.functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def rows() -> Iterator[Row]:
    """Measure all ways in turns; against the peers the target is to be no slower."""
    for optimizer_name in OPTIMIZERS:
        rounds = [
            interleaved({way: make_step(way, optimizer_name) for way in WAYS}, repeats=10, warmup=3)
            for _ in range(ROUNDS)
        ]
        times = {way: min(medians[way] for medians in rounds) for way in WAYS}
        for way in ("dense", "torch.nn.utils.prune", "parametrize"):
            target = TARGET if way == "dense" else 1.0
            yield Row(f"masked step, {optimizer_name}", times["prunekit"], way, times[way], target)
