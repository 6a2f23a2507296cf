"""What a bench found, as records without methods that measure."""

from collections.abc import Mapping

import attrs

from prunekit.deployment.bench.accounting import Account
from prunekit.deployment.timing import Latency

DENSE = "dense"

NO_GAIN = 0.95
"""A form gains where it takes at most this part of the dense time; what is nearer may be the machine's mood."""


@attrs.frozen
class FormResult:
    """A network in one form.

    Attributes:
        name: "dense", "csr", ...
        file: bytes on disk.
        memory: bytes of parameters and buffers, as this form holds them.
        latencies: batch size -> seconds of one forward pass.
        ratios: batch size -> the time of this form / that of the dense one, measured in turns.
    """

    name: str
    file: int
    memory: int
    latencies: Mapping[int, Latency]
    ratios: Mapping[int, float]


@attrs.frozen
class LayerResult:
    """A masked layer where forms were chosen by measurement.

    Attributes:
        name: of the layer.
        kind: as in tables.
        shape: of its weight.
        density: kept / total.
        dense: batch size -> seconds of the dense layer.
        ratios: batch size -> fastest sparse form / dense; nothing where it cannot run sparse.
        reason: why "auto" keeps it dense at every batch size; else "".
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    density: float
    dense: Mapping[int, float] = attrs.field(factory=dict)
    ratios: Mapping[int, float] = attrs.field(factory=dict)
    reason: str = ""


@attrs.frozen
class DeviceResult:
    """Forms on one device, measured in turns.

    Attributes:
        machine: the device, in words.
        forms: the dense one first.
        absent: form -> why it is not there.
    """

    machine: str
    forms: tuple[FormResult, ...]
    absent: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Bench:
    """All that was found.

    Attributes:
        title: the network, in words.
        account: weights and multiply-adds of one sample.
        checkpoint: bytes of the sparse checkpoint: kept values and packed masks.
        masks: bytes of the mask file.
        comparisons: one for each device.
        layers: masked layers, as measured on the CPU.
        advice: lines that say where times are worth little, where nothing is gained, and what would gain.
    """

    title: str
    account: Account
    checkpoint: int
    masks: int
    comparisons: tuple[DeviceResult, ...]
    layers: tuple[LayerResult, ...]
    advice: tuple[str, ...]
