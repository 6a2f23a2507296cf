"""Records of the results of a bench.

This module must not measure.
"""

from collections.abc import Mapping

import attrs

from prunekit.deployment.bench.accounting import Account
from prunekit.deployment.timing import Latency

DENSE = "dense"

NO_GAIN = 0.95
"""A form is faster if it takes at most this share of the dense time; a smaller difference may be noise."""


@attrs.frozen
class FormResult:
    """Result of a network in one form.

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
    """Result of a masked layer whose form was chosen by measurement.

    Attributes:
        name: name of the layer.
        kind: kind of the layer, as in tables.
        shape: shape of its weight.
        density: kept / total connections.
        dense: batch size -> seconds of the dense layer.
        ratios: batch size -> time of the fastest sparse form / dense time; empty if it cannot run sparse.
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
    """Results of all forms on one device, measured in turns.

    Attributes:
        machine: the device, in words.
        forms: the results, the dense form first.
        unavailable: form -> reason.
    """

    machine: str
    forms: tuple[FormResult, ...]
    unavailable: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Bench:
    """Result of a bench.

    Attributes:
        title: the network, in words.
        account: weights, and multiply-adds of one sample.
        checkpoint: bytes of the sparse checkpoint: kept values and packed masks.
        masks: bytes of the mask file.
        comparisons: one for each device.
        layers: masked layers, as measured on the CPU.
        advice: lines about unreliable times, batch sizes at which no form is faster, and densities that would be.
    """

    title: str
    account: Account
    checkpoint: int
    masks: int
    comparisons: tuple[DeviceResult, ...]
    layers: tuple[LayerResult, ...]
    advice: tuple[str, ...]
