"""Measure a pruned network in every form: bytes, latency and advice.

This module must not know the command line.
"""

import contextlib
import platform
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from prunekit.contracts.export_format import PrunedNetwork
from prunekit.deployment.bench.accounting import account
from prunekit.deployment.bench.advice import advise, noise_warning
from prunekit.deployment.bench.crossover import layer_crossover
from prunekit.deployment.bench.forms import HALF, Forms, cpu_forms, cuda_forms
from prunekit.deployment.bench.records import DENSE, Bench, DeviceResult, FormResult
from prunekit.deployment.timing import Latency, interleaved, warm_up
from prunekit.errors import ConfigError, MaskError
from prunekit.layers.lookup import display_name
from prunekit.layers.samples import Samples
from prunekit.masks.files import encode as encode_masks
from prunekit.masks.weight_files import encode_sparse

BATCH_SIZES = (1, 8, 32)

_SECONDS = 1.0
"""Seconds per form and batch size; quartiles of a forward pass of 10 ms then come from a hundred calls."""

_LONGEST = 2.0
"""Longest forward pass in seconds at any batch size except the smallest; measuring takes a hundred times as long."""

Say = Callable[[str], None]


def bench(pruned: PrunedNetwork, batch_sizes: Sequence[int] = BATCH_SIZES, say: Say = lambda _: None) -> Bench:
    """Measure a pruned network, dense and in every form it can run in, on the CPU and the GPU of this machine.

        with_masks = open_pruned("runs/mnist")
        print(bench(with_masks, batch_sizes=(1, 64)).advice)

    Args:
        pruned: the network.
        batch_sizes: samples per forward pass. Sizes above the smallest are skipped if a pass takes more than 2 s; the
            advice then says so.
        say: called with one line of progress at each step.

    Raises:
        ConfigError: no batch size, or one below 1.
        MaskError: the masks drop no weight, or a masked weight is parametrized, so no file can omit its zeros.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise ConfigError(f"batch sizes are {list(batch_sizes)}, expected whole numbers of at least 1, such as 1 8")
    if all(bool(mask.all()) for mask in pruned.masks.tensors.values()):
        raise MaskError(
            f"{pruned.name} has no masks that drop a weight, so no form differs from the dense network; "
            "name a run that prunes, or give --masks"
        )
    sizes = sorted(set(batch_sizes))
    one = pruned.samples.take(1)
    found = account(pruned.network, lambda: one.through(pruned.network), pruned.masks.tensors, pruned.view_of)
    checkpoint = len(encode_sparse(pruned.network.state_dict(), pruned.masks))
    sizes, left_out = _affordable(pruned, sizes)
    # Forms are checked on the largest batch measured, and on at least two samples so that the batch dimension shows.
    pruned = attrs.evolve(pruned, samples=pruned.samples.take(min(pruned.samples.count, max(2, *sizes))))
    say("timing each layer, dense and sparse")
    forms = cpu_forms(pruned, sizes)
    say(f"timing {', '.join(form.name for form in forms.available)} in turns, at batch {', '.join(map(str, sizes))}")
    comparisons = [_compare(_cpu(), forms, pruned.samples, sizes)]
    if torch.cuda.is_available():
        say("timing on the GPU")
        device = torch.device("cuda")
        name = f"GPU ({torch.cuda.get_device_name(device)}), float16"
        comparisons.append(_compare(name, cuda_forms(pruned), pruned.samples.to(device, HALF), sizes))

    def crossover(layer: str, batch_size: int) -> float | None:
        say(f"measuring the density below which {display_name(layer)} is faster sparse at batch {batch_size}")
        module = pruned.network.get_submodule(layer)
        inputs = _input_of(module, pruned.network, pruned.samples.take(batch_size))
        return layer_crossover(module, inputs, pruned.view_of)

    return Bench(
        title=str(pruned),
        account=found,
        checkpoint=checkpoint,
        masks=len(encode_masks(pruned.masks.tensors, pruned.masks.info)),
        comparisons=tuple(comparisons),
        layers=forms.layers,
        advice=(
            *left_out,
            *chain.from_iterable(map(noise_warning, comparisons)),
            *advise(found, comparisons[0], forms.layers, crossover),
        ),
    )


def _affordable(pruned: PrunedNetwork, batch_sizes: Sequence[int]) -> tuple[list[int], tuple[str, ...]]:
    """Return the batch sizes to measure, and a line about those that would take too long."""
    for number, (size, following) in enumerate(pairwise(batch_sizes), 1):
        call = _call(pruned.network, pruned.samples.take(size))
        # Twice, because other load may have delayed a single long call.
        taken = min(warm_up(call), warm_up(call)) * following / size
        if taken > _LONGEST:
            left = " ".join(map(str, batch_sizes[number:]))
            line = f"skipped batch {left}: a pass takes about {taken:.0f} s or more; measure one size alone"
            return list(batch_sizes[:number]), (f"{line}: --batch-sizes {following}",)
    return list(batch_sizes), ()


def _cpu() -> str:
    """Return the name of the processor, if the system has one, and the number of threads in use."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    threads = torch.get_num_threads()
    name = names[0] if names else platform.processor() or platform.machine()
    return f"CPU ({name}), {threads} thread{'s' if threads > 1 else ''}, torch {torch.__version__}"


def _compare(machine: str, forms: Forms, samples: Samples, batch_sizes: Sequence[int]) -> DeviceResult:
    latencies: dict[str, dict[int, Latency]] = {form.name: {} for form in forms.available}
    for size in batch_sizes:
        batch = samples.take(size)
        calls = {form.name: _call(form.network, batch) for form in forms.available}
        for name, latency in interleaved(calls, _SECONDS * len(calls)).items():
            latencies[name][size] = latency
    dense = latencies[DENSE]
    results = [
        FormResult(
            form.name,
            form.file,
            form.memory,
            latencies[form.name],
            {size: latency.ratio(dense[size]) for size, latency in latencies[form.name].items()},
        )
        for form in forms.available
    ]
    return DeviceResult(machine, tuple(results), forms.unavailable)


def _call(network: nn.Module, samples: Samples) -> Callable[[], None]:
    on_gpu = any(parameter.is_cuda for parameter in network.parameters())

    def call() -> None:
        with torch.no_grad():
            network(*samples.arguments, **samples.keywords)
        if on_gpu:
            torch.cuda.synchronize()

    return call


def _input_of(module: nn.Module, network: nn.Module, samples: Samples) -> Tensor:
    """Return the input of the first call of a layer."""
    found: list[Tensor] = []

    def note(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        found.append(arguments[0].detach().clone())

    handle = module.register_forward_pre_hook(note)
    try:
        samples.through(network)
    finally:
        handle.remove()
    return found[0]
