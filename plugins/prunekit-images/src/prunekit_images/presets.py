"""How to train each network: usual settings, with budgets that reach usual figures in minutes. Data only."""

from collections.abc import Mapping

import attrs


@attrs.frozen
class Preset:
    """The defaults of the task's options, under the same names, and of ``training``.

    Attributes:
        epochs: of the dense training, and of each stage after it.
    """

    optimizer: str
    learning_rate: float
    weight_decay: float
    epochs: tuple[int, int]
    warmup: float = 0.0
    width: int | None = None
    blocks: int | None = None


PRESETS: Mapping[str, Preset] = {
    "lenet-300-100": Preset("adamw", 2e-3, 0.01, (8, 3)),
    "lenet-5": Preset("adamw", 2e-3, 0.01, (5, 2)),
    "resnet": Preset("sgd", 0.1, 5e-4, (5, 2), warmup=0.1, width=16, blocks=1),
    "vit": Preset("adamw", 2e-3, 0.05, (10, 3), warmup=0.1, width=64, blocks=3),
}

BATCH = 128
DIGITS_BATCH = 32
DIGITS_EPOCHS = 5
"""Of the digits an epoch is a hundredth of MNIST's images: smaller batches, and five times as many epochs."""
