"""How to train each network: settings found by measuring. Data only."""

from collections.abc import Mapping

import attrs


@attrs.frozen
class Preset:
    """The defaults of the task's options, under the same names, and of ``training``."""

    optimizer: str
    learning_rate: float
    weight_decay: float
    shift: int
    budget: str
    retraining: str
    warmup: float = 0.0
    width: int | None = None
    blocks: int | None = None


PRESETS: Mapping[str, Preset] = {
    "lenet-300-100": Preset("adamw", 2e-3, 0.01, 0, "8 epochs", "3 epochs"),
    "lenet-5": Preset("adamw", 2e-3, 0.01, 0, "5 epochs", "2 epochs"),
    "resnet": Preset("sgd", 0.1, 5e-4, 0, "5 epochs", "2 epochs", warmup=0.1, width=16, blocks=1),
    "vit": Preset("adamw", 2e-3, 0.05, 0, "10 epochs", "3 epochs", warmup=0.1, width=64, blocks=3),
}

DIGITS = {"batch_size": 32}
"""A set this small has an epoch of a tenth of a second: smaller batches, and more epochs."""

DIGITS_EPOCHS = 5
