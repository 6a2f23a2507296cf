"""Format ``semi-structured``: linear layers that keep two of every four inputs, for sparse tensor cores.

Layers of another pattern or shape stay dense. Without a GPU the file is checked by unpacking it; with a GPU its kernels
are run as well.
"""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from prunekit.contracts.export_format import Encoded, ExportFormat, PrunedNetwork, Run
from prunekit.deployment.export.formats import SAME_WEIGHTS
from prunekit.deployment.output_check import compare
from prunekit.deployment.sparse.semi_structured import encode, load_semi_structured, read, weight_problem
from prunekit.errors import ExportError
from prunekit.files.safetensors_files import some
from prunekit.layers.lookup import display_name, parameter_name
from prunekit.layers.samples import Samples

_HALF_TOLERANCE = 2e-2
"""Tolerance of kernels in half precision, relative to the largest output: ten bits, and sums in another order."""


def _encode(pruned: PrunedNetwork) -> Encoded:
    linear = {name: view for name, view in pruned.views.items() if type(view.module) is nn.Linear}
    problems = {name: weight_problem(view.weight) for name, view in linear.items()}
    packed = [name for name, problem in problems.items() if not problem]
    dense = [f"{display_name(name)} {problem}" for name, problem in problems.items() if problem]
    if not packed:
        raise ExportError(
            f"no linear layer of {pruned.name} can run as 2:4: {some(dense) or 'it has no linear layers'}; prune with "
            "--pattern 2:4, or choose another format"
        )
    weights = pruned.network.state_dict()
    notes = (f"2:4: {some([display_name(name) for name in packed])}", *([f"dense: {some(dense)}"] if dense else []))
    return Encoded(encode(weights, {parameter_name(name, linear[name]) for name in packed}), notes)


def _reopen(path: Path, pruned: PrunedNetwork) -> Run:
    network = copy.deepcopy(pruned.network)
    network.load_state_dict(read(path)[0])

    def run(samples: Samples) -> tuple[Tensor, ...]:
        if torch.cuda.is_available():
            _check_kernels(path, network, samples)
        return samples.through(network)

    return run


def _check_kernels(path: Path, network: nn.Module, samples: Samples) -> None:
    """Compare the sparse kernels with dense kernels of the same precision."""
    dense = copy.deepcopy(network).to("cuda", torch.float16)
    halves = samples.to(torch.device("cuda"), torch.float16)
    expected = halves.through(dense)
    found = halves.through(load_semi_structured(path, copy.deepcopy(network)))
    if problem := compare(expected, found, _HALF_TOLERANCE)[1]:
        raise ExportError(f"with the 2:4 kernels of this GPU, {problem}; nothing was written")


FORMAT = ExportFormat(
    "semi-structured",
    "2:4 linear layers for sparse tensor cores.",
    _encode,
    _reopen,
    SAME_WEIGHTS,
    load="network = prunekit.load_semi_structured({path}, network)",
)
