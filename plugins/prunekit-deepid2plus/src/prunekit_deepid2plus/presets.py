"""Settings that go together: a network, how to train it, and densities that bite. Data only."""

from collections.abc import Mapping

import attrs


@attrs.frozen
class Preset:
    """The defaults of the task's options, under the same names, and of ``training`` and ``structure``."""

    width: float
    input_size: str
    feature: int
    dropout: float
    auxiliary: str
    batch_people: int
    batch_images: int
    margin: float
    verification_weight: float
    learning_rate: float
    weight_decay: float
    budget: str
    retraining: str
    structure: str


TINY = Preset(
    width=1 / 4,
    input_size="56x48",
    feature=128,
    dropout=0.3,
    auxiliary="",
    batch_people=42,
    batch_images=3,
    margin=12.0,
    verification_weight=0.5,
    learning_rate=0.1,
    weight_decay=1e-3,
    budget="30 epochs",
    retraining="4 epochs",
    structure="f=1/64 5b=1/32 4b=1/2",
)

PRESETS: Mapping[str, Preset] = {
    "tiny": TINY,
    "strong": attrs.evolve(TINY, budget="100 epochs", retraining="5 epochs"),
    "small": Preset(
        width=1 / 2,
        input_size="56x48",
        feature=256,
        dropout=0.3,
        auxiliary="3 4",
        batch_people=42,
        batch_images=3,
        margin=11.0,
        verification_weight=0.05,
        learning_rate=0.1,
        weight_decay=1e-3,
        budget="30 epochs",
        retraining="8 epochs",
        structure="f=1/128 5b=1/64 4b=1/2",
    ),
    "paper": Preset(
        width=1.0,
        input_size="112x96",
        feature=512,
        dropout=0.3,
        auxiliary="3 4",
        batch_people=85,
        batch_images=3,
        margin=16.0,
        verification_weight=0.05,
        learning_rate=0.1,
        weight_decay=1e-3,
        budget="30 epochs",
        retraining="10 epochs",
        structure="f=1/256 5b=1/128 4b=1/2",
    ),
}
