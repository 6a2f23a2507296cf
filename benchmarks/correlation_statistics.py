"""Cost of the correlations, against the forward pass of the layer and against plain unfold and multiply.

Ours is the whole of the criterion's work, all passes and the last sums too, beside one forward pass of the samples.
"""

from collections.abc import Iterator

import torch
from measuring import Row, interleaved
from prunekit_deepid2plus.local import LocallyConnected2d, LocalView
from torch import Tensor, nn

from prunekit.contracts.criterion import Observation
from prunekit.criteria.correlation import Correlation
from prunekit.criteria.statistics.correlation_sums import CorrelationSums
from prunekit.layers.torch_views import ConvolutionView, LinearView
from prunekit.layers.view import LayerView

BATCH = 128
LARGEST_ERROR = 1e-7


def forward(layer: nn.Module, batches: list[Tensor]) -> None:
    """Run the layer."""
    for batch in batches:
        layer(batch)


def correlate(view: LayerView, batches: list[Tensor], outputs: list[Tensor]) -> None:
    """Do what the criterion does with a layer."""
    criterion, more = Correlation(), True
    while more:
        for batch, above in zip(batches, outputs, strict=True):
            criterion.observe(Observation(view, batch, above, above))
        more = criterion.end_pass()


def unfold_and_multiply(batches: list[Tensor], outputs: list[Tensor]) -> None:
    """Sum the products of a convolution as one would at first, in single precision; no moments."""
    sums: Tensor | None = None
    for batch, above in zip(batches, outputs, strict=True):
        windows = nn.functional.unfold(batch, 3, padding=1)  # [samples, fan, positions]
        products = torch.bmm(above.flatten(2).permute(2, 1, 0), windows.permute(2, 0, 1))
        sums = products if sums is None else sums.add_(products)


def error(mean: float) -> float:
    """Return the largest error of a coefficient against two passes in double precision; means in deviations."""
    torch.manual_seed(0)
    samples, common = 10_000, 64
    shared = torch.randn(samples, common)
    inputs, outputs = (shared.repeat(1, 512 // common) * 3 + torch.randn(samples, 512) + mean for _ in range(2))
    sums = CorrelationSums()
    for below, above in zip(torch.split(inputs, BATCH), torch.split(outputs, BATCH), strict=True):
        sums.update(below.unsqueeze(0), above.unsqueeze(0))
    below, above = (values.double() - values.double().mean(0) for values in (inputs, outputs))
    expected = (above / above.norm(dim=0)).T @ (below / below.norm(dim=0))
    return float((sums.correlation()[0] - expected).abs().max())


@torch.no_grad()
def rows() -> Iterator[Row]:
    """Measure in turns: each layer's forward pass, and its correlations."""
    torch.manual_seed(0)
    full, convolution = nn.Linear(4096, 512), nn.Conv2d(512, 512, 3, padding=1)
    local = LocallyConnected2d(256, 256, (7, 6), 3)
    for what, view, size, samples, repeats, target in (
        ("full 4096 to 512", LinearView(full), (4096,), 10_000, 9, 1.15),
        ("3x3 convolution of 512 maps", ConvolutionView(convolution), (512, 14, 12), 1024, 3, 1.8),
        ("local 5a of the paper", LocalView(local), (256, 7, 6), 4096, 5, 1.3),
    ):
        layer = view.module
        batches = list(torch.split(torch.randn(samples, *size).relu_(), BATCH))
        outputs = [layer(batch) for batch in batches]
        calls = {
            "forward": lambda: forward(layer, batches),  # noqa: B023 - called in this turn of the loop
            "ours": lambda: correlate(view, batches, outputs),  # noqa: B023 - likewise
        }
        if layer is convolution:
            calls["unfold and bmm"] = lambda: unfold_and_multiply(batches, outputs)  # noqa: B023 - likewise
        times = interleaved(calls, repeats)
        yield Row(f"correlations, {what}", times["ours"], "forward", times["forward"], target)
        if layer is convolution:
            yield Row(f"correlations, {what}", times["ours"], "unfold and bmm", times["unfold and bmm"], 1.0)
    for mean in (0.0, 1e4):
        yield Row(f"error, mean / std {mean:g}", error(mean), "allowed", LARGEST_ERROR, LARGEST_ERROR, True, "")
