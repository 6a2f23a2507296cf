"""The DeepID2+ network: eight convolutions, two locally connected layers and one full layer.

The table of Sun, Wang, Tang, CVPR 2016 (arXiv 1512.01891), with settings that make it smaller but keep the
7x6, 5x4, 3x2 geometry at the top, and with batch normalisation, which the paper has not: without it the
network does not get beyond 73 % on a few thousand images. This module must not know data, losses or
training.
"""

import attrs
import torch
from torch import Tensor, nn

from prunekit_deepid2plus.local import LocallyConnected2d

CHANNELS = {"1": 64, "2": 96, "3": 192, "4": 256, "5": 256}
"""Output channels of the stages at width 1."""

POOLED = {(28, 24): "24", (56, 48): "124", (112, 96): "1234"}
"""Input rows and columns -> the stages that end in 2x2 max pooling, so that stage 4 always leaves 7x6."""

TOP: tuple[int, int] = (7, 6)
"""Rows and columns of the output of stage 4."""

CONVOLUTIONS = ("1a", "1b", "2a", "2b", "3a", "3b", "4a", "4b")
LOCALS = ("5a", "5b")


@attrs.frozen
class NetworkSettings:
    """What may differ from the paper's network.

    Attributes:
        width: fraction of the paper's channel counts.
        feature: values of the face representation f.
        input_size: rows and columns of a face; a key of ``POOLED``.
        batch_norm: normalise after every layer, f too; layers then have no bias of their own.
        feature_relu: rectify f.
        colours: channels of a face: 3, or 1 for grey.
    """

    width: float = 1.0
    feature: int = 512
    input_size: tuple[int, int] = (112, 96)
    batch_norm: bool = True
    feature_relu: bool = False
    colours: int = 3

    def channels(self, stage: str) -> int:
        """Return the output channels of stage "1" to "5"."""
        return max(1, round(CHANNELS[stage] * self.width))


class Network(nn.Module):
    """Faces ``[samples, colours, rows, columns]`` to features ``[samples, feature]``.

    Its prunable layers are ``conv1a`` ... ``conv4b``, ``local5a``, ``local5b`` and ``f``; layer 4b is followed by
    ``norm4b`` and ``relu4b``, f by ``normf`` and ``reluf``. Weights are drawn from torch's global generator.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.settings = settings
        self.pool = nn.MaxPool2d(2)
        bias = not settings.batch_norm
        channels = settings.colours
        for name in CONVOLUTIONS:
            width = settings.channels(name[0])
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=bias)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            self._add(name, f"conv{name}", convolution, nn.BatchNorm2d(width))
            channels = width
        size = TOP
        for name in LOCALS:
            width = settings.channels(name[0])
            local = LocallyConnected2d(channels, width, size, 3, bias=bias)
            self._add(name, f"local{name}", local, nn.BatchNorm2d(width))
            channels, size = width, local.output_size
        full = nn.Linear(channels * size[0] * size[1], settings.feature, bias=bias)
        nn.init.kaiming_normal_(full.weight, nonlinearity="relu" if settings.feature_relu else "linear")
        self._add("f", "f", full, nn.BatchNorm1d(settings.feature), rectify=settings.feature_relu)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def _add(self, name: str, layer_name: str, layer: nn.Module, norm: nn.Module, *, rectify: bool = True) -> None:
        self.add_module(layer_name, layer)
        self.add_module(f"norm{name}", norm if self.settings.batch_norm else nn.Identity())
        self.add_module(f"relu{name}", nn.ReLU() if rectify else nn.Identity())

    def _apply_layer(self, name: str, layer_name: str, inputs: Tensor) -> Tensor:
        outputs: Tensor = inputs
        for part in (layer_name, f"norm{name}", f"relu{name}"):
            outputs = self.get_submodule(part)(outputs)
        return outputs

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs of the stages, "1" to "5" (pooled where the stage ends in pooling), and "f"."""
        outputs = {}
        values = images
        for name in CONVOLUTIONS:
            values = self._apply_layer(name, f"conv{name}", values)
            if name.endswith("b"):
                values = self.pool(values) if name[0] in POOLED[self.settings.input_size] else values
                outputs[name[0]] = values
        for name in LOCALS:
            values = self._apply_layer(name, f"local{name}", values)
        outputs["5"] = values
        outputs["f"] = self._apply_layer("f", "f", values.flatten(1))
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        """Return the features."""
        return self.stages(images)["f"]


def stage_values(settings: NetworkSettings) -> dict[str, int]:
    """Return how many values each stage leaves for one face, found without computing anything."""
    with torch.device("meta"):
        network = Network(settings).eval()
        outputs = network.stages(torch.empty(1, settings.colours, *settings.input_size))
    return {stage: values[0].numel() for stage, values in outputs.items()}


def activation_names() -> dict[str, str]:
    """Return layer name -> the module whose output is the layer's activation."""
    names = {f"conv{name}": f"relu{name}" for name in CONVOLUTIONS}
    names |= {f"local{name}": f"relu{name}" for name in LOCALS}
    return names | {"f": "reluf"}
