"""The forms in which a pruned network can run, ready to be measured, and those in which it cannot, and why.

This module must not measure networks; the form "auto" measures its layers when it is made.
"""

import copy
import inspect
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from prunekit.benching.records import DENSE, LayerResult
from prunekit.errors import PrunekitError
from prunekit.export.writing import find_format
from prunekit.pruned import Pruned
from prunekit.samples import Samples
from prunekit.semi_structured import load_semi_structured
from prunekit.shrinking import save_shrunk, shrink
from prunekit.sparse import LayerReport, run_sparse, save_csr
from prunekit.sparse_checkpoints import encode_weights

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
        tensors = [*self.network.parameters(), *self.network.buffers()]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(storages.values())


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


def cpu_forms(pruned: Pruned, batch_sizes: Sequence[int]) -> Forms:
    """Return dense, csr, auto and shrunk, of these what can be made."""
    forms = Forms([_dense(pruned.network)])
    _add_sparse(forms, pruned, batch_sizes)
    try:
        forms.there.append(_shrunk(pruned))
    except PrunekitError as error:
        forms.absent["shrunk"] = str(error)
    return forms


def cuda_forms(pruned: Pruned) -> Forms:
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


def sparse_inputs(network: nn.Module, samples: Samples) -> Any:
    """Return samples as ``run_sparse`` takes them: all by position, or all by name."""
    if not samples.keywords:
        return samples.arguments
    names = inspect.signature(network.forward).parameters
    return dict(zip(names, samples.arguments, strict=False)) | dict(samples.keywords)


def _dense(network: nn.Module) -> Form:
    return Form(DENSE, network, len(encode_weights(network.state_dict())))


def _on_gpu(form: Form) -> Form:
    return attrs.evolve(form, network=copy.deepcopy(form.network).to("cuda", HALF))


def _add_sparse(forms: Forms, pruned: Pruned, batch_sizes: Sequence[int]) -> None:
    inputs = sparse_inputs(pruned.network, pruned.samples)
    made: dict[str, tuple[nn.Module, tuple[LayerReport, ...]]] = {}
    try:
        for name in ("csr", "auto"):
            made[name] = run_sparse(
                pruned.network, pruned.masks, inputs, batch_sizes=batch_sizes, form=name, view_of=pruned.view_of
            )
    except PrunekitError as error:
        forms.absent["csr"] = str(error)
        return
    forms.layers = tuple(map(_layer, made["auto"][1]))
    if all(layer.reason and not layer.dense for layer in forms.layers):
        reasons = "; ".join(f"{layer.name} {layer.reason}" for layer in forms.layers[:3])
        forms.absent["csr"] = f"no layer can run sparse: {reasons}"
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, (network, reports) in made.items():
            path = Path(folder, f"{name}.safetensors")
            save_csr(path, pruned.network, pruned.masks, reports)
            forms.there.append(Form(name, network, path.stat().st_size))


def _layer(report: LayerReport) -> LayerResult:
    dense = {timing.batch_size: timing.milliseconds[DENSE] / 1e3 for timing in report.timings}
    ratios = {timing.batch_size: min(timing.ratios.values()) for timing in report.timings}
    return LayerResult(report.layer, report.kind, report.density, dense, ratios, report.reason)


def _shrunk(pruned: Pruned) -> Form:
    samples = pruned.samples
    shrunk = shrink(pruned.network, samples.arguments, pruned.masks, keywords=samples.keywords, view_of=pruned.view_of)
    before, after = shrunk.report.weights
    if before == after:
        raise PrunekitError("no unit is gone from a layer")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "shrunk.safetensors")
        save_shrunk(path, shrunk.network, view_of=pruned.view_of)
        return Form("shrunk", shrunk.network, path.stat().st_size)
