"""Build the forms in which a pruned network can run, and give the reason for each form that is unavailable.

This module must not measure networks; building the form "auto" measures its layers.
"""

import copy
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn

from prunekit.contracts.export_format import PrunedNetwork
from prunekit.deployment.bench.records import DENSE, LayerResult
from prunekit.deployment.export.writing import find_format
from prunekit.deployment.shrinking.files import encode_shrunk
from prunekit.deployment.shrinking.shrink import shrink
from prunekit.deployment.sparse.conversion import LayerReport, run_sparse
from prunekit.deployment.sparse.csr_files import encode_csr
from prunekit.deployment.sparse.semi_structured import load_semi_structured
from prunekit.errors import PrunekitError
from prunekit.layers.lookup import display_name
from prunekit.masks.weight_files import encode_weights

HALF = torch.float16
"""Dtype of the forms on a GPU, which 2:4 kernels need."""


@attrs.frozen(eq=False)
class Form:
    """A network in one form.

    Attributes:
        name: "dense", "csr", ...
        network: the network in this form.
        file: bytes on disk.
    """

    name: str
    network: nn.Module
    file: int

    @property
    def memory(self) -> int:
        """Bytes of parameters and buffers; shared memory counts once."""
        tensors = chain.from_iterable(map(_parts, (*self.network.parameters(), *self.network.buffers())))
        storages = [tensor.untyped_storage() for tensor in tensors]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@attrs.define
class Forms:
    """The forms of a network on one device.

    Attributes:
        available: the forms that can run, the dense one first.
        unavailable: form -> reason.
        layers: masked layers as measured for "auto".
    """

    available: list[Form]
    unavailable: dict[str, str] = attrs.field(factory=dict)
    layers: tuple[LayerResult, ...] = ()


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the tensors that hold the data of a tensor: itself, or the parts of a wrapper subclass of torch (2:4)."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def cpu_forms(pruned: PrunedNetwork, batch_sizes: Sequence[int]) -> Forms:
    """Build the forms dense, csr, auto and shrunk, as far as the network has them."""
    forms = Forms([_dense(pruned.network)])
    _add_sparse(forms, pruned, batch_sizes)
    try:
        forms.available.append(_shrunk(pruned))
    except PrunekitError as error:
        forms.unavailable["shrunk"] = str(error)
    return forms


def cuda_forms(pruned: PrunedNetwork) -> Forms:
    """Build the forms dense, shrunk and 2:4 in half precision on the GPU, as far as the network has them."""
    forms = Forms([_on_gpu(_dense(pruned.network))])
    try:
        forms.available.append(_on_gpu(_shrunk(pruned)))
    except PrunekitError as error:
        forms.unavailable["shrunk"] = str(error)
    try:
        content = find_format("semi-structured").encode(pruned).data
    except PrunekitError as error:
        forms.unavailable["2:4"] = str(error)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "semi-structured.safetensors")
            path.write_bytes(content)
            network = load_semi_structured(path, copy.deepcopy(pruned.network), dtype=HALF)
        forms.available.append(Form("2:4", network, len(content)))
    return forms


def _dense(network: nn.Module) -> Form:
    return Form(DENSE, network, len(encode_weights(network.state_dict())))


def _on_gpu(form: Form) -> Form:
    return attrs.evolve(form, network=copy.deepcopy(form.network).to("cuda", HALF))


def _add_sparse(forms: Forms, pruned: PrunedNetwork, batch_sizes: Sequence[int]) -> None:
    made: list[Form] = []
    reports: tuple[LayerReport, ...] = ()
    try:
        for name in ("csr", "auto"):
            network, reports = run_sparse(
                pruned.network, pruned.masks, pruned.samples, batch_sizes=batch_sizes, form=name, view_of=pruned.view_of
            )
            made.append(Form(name, network, len(encode_csr(pruned.network, pruned.masks, reports))))
    except PrunekitError as error:
        forms.unavailable["csr"] = str(error)
        return
    forms.layers = tuple(_layer(report, pruned.network) for report in reports)
    if any(layer.dense for layer in forms.layers):
        forms.available += made
    else:
        reasons = "; ".join(f"{display_name(layer.name)} {layer.reason}" for layer in forms.layers[:3])
        forms.unavailable["csr"] = f"no layer can run sparse: {reasons or 'no mask is on a layer'}"


def _layer(report: LayerReport, network: nn.Module) -> LayerResult:
    dense = {timing.batch_size: timing.milliseconds[DENSE] / 1e3 for timing in report.timings}
    ratios = {timing.batch_size: min(timing.ratios.values()) for timing in report.timings}
    shape = tuple(attrgetter(report.parameter)(network).shape)
    return LayerResult(report.layer, report.kind, shape, report.density, dense, ratios, report.reason)


def _shrunk(pruned: PrunedNetwork) -> Form:
    shrunk = shrink(pruned.network, pruned.samples, pruned.masks, view_of=pruned.view_of)
    before, after = shrunk.report.weights
    if before == after:
        raise PrunekitError("the masks do not remove a whole unit from any layer")
    return Form("shrunk", shrunk.network, len(encode_shrunk(shrunk.network, pruned.view_of)))
