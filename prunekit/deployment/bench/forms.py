"""The forms in which a pruned network can run, ready to be measured, and those in which it cannot, and why.

This module must not measure networks; the form "auto" measures its layers when it is made.
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
"""Of kernels for 2:4."""


@attrs.frozen(eq=False)
class Form:
    """A network in one form.

    Attributes:
        name: "dense", "csr", ...
        network: what is called.
        file: bytes on disk.
    """

    name: str
    network: nn.Module
    file: int

    @property
    def memory(self) -> int:
        """Bytes of parameters and buffers; what is shared counts once."""
        tensors = chain.from_iterable(map(_parts, (*self.network.parameters(), *self.network.buffers())))
        storages = [tensor.untyped_storage() for tensor in tensors]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@attrs.define
class Forms:
    """What there is on one device.

    Attributes:
        there: the dense form first.
        absent: form -> why it is not there.
        layers: masked layers, where "auto" measured them.
    """

    there: list[Form]
    absent: dict[str, str] = attrs.field(factory=dict)
    layers: tuple[LayerResult, ...] = ()


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield what a tensor keeps: itself, or the tensors that one of torch's wrappers (2:4) consists of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def cpu_forms(pruned: PrunedNetwork, batch_sizes: Sequence[int]) -> Forms:
    """Return dense, csr, auto and shrunk, of these what can be made."""
    forms = Forms([_dense(pruned.network)])
    _add_sparse(forms, pruned, batch_sizes)
    try:
        forms.there.append(_shrunk(pruned))
    except PrunekitError as error:
        forms.absent["shrunk"] = str(error)
    return forms


def cuda_forms(pruned: PrunedNetwork) -> Forms:
    """Return dense, shrunk and semi-structured, of these what can be made, in half precision on the GPU."""
    forms = Forms([_on_gpu(_dense(pruned.network))])
    try:
        forms.there.append(_on_gpu(_shrunk(pruned)))
    except PrunekitError as error:
        forms.absent["shrunk"] = str(error)
    try:
        content = find_format("semi-structured").encode(pruned).data
    except PrunekitError as error:
        forms.absent["2:4"] = str(error)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "semi-structured.safetensors")
            path.write_bytes(content)
            network = load_semi_structured(path, copy.deepcopy(pruned.network), dtype=HALF)
        forms.there.append(Form("2:4", network, len(content)))
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
        forms.absent["csr"] = str(error)
        return
    forms.layers = tuple(_layer(report, pruned.network) for report in reports)
    if any(layer.dense for layer in forms.layers):
        forms.there += made
    else:
        reasons = "; ".join(f"{display_name(layer.name)} {layer.reason}" for layer in forms.layers[:3])
        forms.absent["csr"] = f"no layer can run sparse: {reasons or 'the masks are on none'}"


def _layer(report: LayerReport, network: nn.Module) -> LayerResult:
    dense = {timing.batch_size: timing.milliseconds[DENSE] / 1e3 for timing in report.timings}
    ratios = {timing.batch_size: min(timing.ratios.values()) for timing in report.timings}
    shape = tuple(attrgetter(report.parameter)(network).shape)
    return LayerResult(report.layer, report.kind, shape, report.density, dense, ratios, report.reason)


def _shrunk(pruned: PrunedNetwork) -> Form:
    shrunk = shrink(pruned.network, pruned.samples, pruned.masks, view_of=pruned.view_of)
    before, after = shrunk.report.weights
    if before == after:
        raise PrunekitError("no unit is gone from a layer")
    return Form("shrunk", shrunk.network, len(encode_shrunk(shrunk.network, pruned.view_of)))
