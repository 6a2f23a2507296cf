"""From a pruned network to a copy of it whose layers run sparse where they can, and where they gain by it.

This module must not know files.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn

from prunekit.deployment.sparse.form_choice import Timing, measure
from prunekit.deployment.sparse.input_recorder import Calls, find_calls, watching
from prunekit.deployment.sparse.products import MatrixProduct, TapProducts
from prunekit.deployment.sparse.sparse_layer import DENSE, SparseLayer, make_product, why_dense
from prunekit.distributed.torch_internals import has_forward_hooks
from prunekit.errors import ConfigError
from prunekit.layers.lookup import masked_layers, parameter_name, parameter_of
from prunekit.layers.samples import Samples
from prunekit.layers.view import LayerView, ViewOf
from prunekit.masks.masks import Masks
from prunekit.masks.reparametrized import copy_of
from prunekit.plugins.manager import installed_views

Products = dict[str, MatrixProduct | TapProducts]


@attrs.frozen
class LayerReport:
    """How a masked layer runs.

    Attributes:
        layer: its name.
        parameter: the name of its weight.
        kind: "linear", "convolution", or what a plugin calls its own.
        density: kept / total of its weight.
        forms: number of samples (of a linear layer: rows) -> "vectors", "columns", "taps" or "dense"; of a number
            between, the nearest; nothing where the layer is dense altogether.
        timings: one for each batch size that was measured.
        reason: why it is dense altogether; else "".
    """

    layer: str
    parameter: str
    kind: str
    density: float
    forms: Mapping[int, str] = attrs.field(factory=dict)
    timings: tuple[Timing, ...] = ()
    reason: str = ""


def run_sparse(
    model: nn.Module,
    masks: Masks,
    sample_input: Any,
    *,
    batch_sizes: Sequence[int] = (1, 8, 32),
    form: Literal["auto", "csr"] = "auto",
    view_of: ViewOf | None = None,
) -> tuple[nn.Module, tuple[LayerReport, ...]]:
    """Return a copy of a model whose masked layers run sparse, for inference on the CPU; the model stays as it is.

    Measuring takes about 0.3 s for each layer and batch size, with as many threads as torch has now.

    Args:
        model: any module; its dropped weights need not be zero.
        masks: which weights stay.
        sample_input: what the model is called with: a tensor, a tuple of arguments, or a mapping of named ones; their
            first dimension is the batch. Layers that are neither linear nor convolutions are made for its size.
        batch_sizes: at which "auto" measures. Of a batch size between, the nearest decides.
        form: "auto" measures each layer, dense and sparse, and keeps the faster; "csr" measures nothing and runs
            each layer sparse that can.
        view_of: gives the views of the layers; ``None``: the core and all installed plugins do.

    Returns:
        The copy, in evaluation mode, and how each masked layer runs, in the order of the network.

    Raises:
        ConfigError: no batch size or one below 1; a sample without samples; for "csr", a torch without MKL; a model
            that uses a layer's weight itself.
        MaskError: listing the masks that do not fit the model.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise ConfigError(f"batch_sizes is {list(batch_sizes)}, expected numbers of at least 1")
    samples = Samples.of(sample_input)
    # torch's stubs leave it untyped.
    kernels = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if form == "csr" and not kernels:
        raise ConfigError("this torch has no sparse kernels for the CPU (MKL); run the model dense")
    network = copy_of(model).eval().requires_grad_(requires_grad=False)
    masks.apply(network)
    layers = masked_layers(network, masks, installed_views() if view_of is None else view_of)
    products: Products = {}
    reasons = dict.fromkeys(layers, "this torch has no sparse kernels for the CPU (MKL)")
    if kernels:
        products, reasons = make_products(network, layers, samples)
    timings: dict[str, list[Timing]] = {name: [] for name in layers}
    forms: dict[str, Mapping[int, str]] = {name: product.usual for name, product in products.items()}
    if form == "auto":
        for batch_size in sorted(set(batch_sizes)):
            _measure(network, layers, products, samples.take(batch_size), batch_size, timings)
        forms = {name: _forms(timings[name]) for name in products}
    reports = [
        LayerReport(
            name,
            parameter_name(name, view),
            view.kind,
            float(view.weight.count_nonzero() / view.weight.numel()),
            forms.get(name, {}),
            tuple(timings[name]),
            reasons.get(name) or ("" if forms[name] else "dense is faster, or as fast, at every batch size"),
        )
        for name, view in layers.items()
    ]
    return put_in(network, layers, products, forms, samples), tuple(reports)


def make_products(
    network: nn.Module, layers: Mapping[str, LayerView], samples: Samples
) -> tuple[Products, dict[str, str]]:
    """Return the sparse products of the layers that can have one, and of the others why they cannot."""
    reasons = {name: reason for name, view in layers.items() if (reason := _why_left(view))}
    modules = {name: view.module for name, view in layers.items() if name not in reasons}
    calls = find_calls(network, modules, samples)
    products: Products = {}
    for name in modules:
        view, called = layers[name], calls[name]
        if reason := _why_not(view, called):
            reasons[name] = reason
            continue
        product = make_product(view, tuple(called.shapes[0][1:])).eval()
        if _agree(product, view.module, called.shapes[0]):
            products[name] = product
        else:
            reasons[name] = f"is a {type(view.module).__name__}, whose outputs are not weights times inputs plus bias"
    return products, reasons


def put_in(
    network: nn.Module,
    layers: Mapping[str, LayerView],
    products: Products,
    forms: Mapping[str, Mapping[int, str]],
    samples: Samples,
) -> nn.Module:
    """Put sparse layers where the dense ones are; the network is changed.

    Raises:
        ConfigError: when the network uses the weight of such a layer itself.
    """
    sparse = {}
    for name, product in products.items():
        if forms[name]:
            dense = layers[name].module if DENSE in forms[name].values() else None
            sparse[layers[name].module] = SparseLayer(product, forms[name], dense).eval()
    for path, module in list(network.named_modules(remove_duplicate=False)):
        if module in sparse:
            if not path:
                return sparse[module]
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, sparse[module])
    try:
        samples.call(network)
    except AttributeError as error:
        raise ConfigError(
            f"{type(network).__name__} uses more of a layer than its outputs ({error}); "
            "leave the masks of such layers out"
        ) from error
    return network


def _why_left(view: LayerView) -> str:
    """Return why a layer is not even looked at."""
    module = view.module
    if not view.observable:
        return f"computes inside {type(module).__name__}"
    if parameter_of(view) is None:
        return "computes its weight from other parameters; make it one with remove_parametrizations"
    if view.weight.count_nonzero() == view.weight.numel():
        return "drops nothing"
    # A module whose forward was set is one that some library has wrapped.
    if has_forward_hooks(module) or "forward" in vars(module):
        return "has forward hooks, which a sparse layer would not call"
    return ""


def _why_not(view: LayerView, called: Calls) -> str:
    if not called.shapes and not called.odd:
        return "was not called with the sample input, at least not as a module"
    if called.odd:
        return "is called with something else than one tensor"
    assert called.dtype is not None
    reason = why_dense(view, tuple(called.shapes[0][1:]), called.dtype)
    if not reason and len({shape[1:] for shape in called.shapes}) > 1 and view.kind not in {"linear", "convolution"}:
        return "is called with inputs of several sizes"
    return reason


def _agree(product: MatrixProduct | TapProducts, module: nn.Module, shape: torch.Size) -> bool:
    """Say whether a product gives the outputs of the layer it was made of, for random inputs."""
    dtype = product.constant.dtype
    inputs = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = module(inputs)
        most = torch.finfo(dtype).eps ** 0.5 * wanted.abs().max()
        outputs = [product(inputs, form) for form in product.forms]
    return all(each.shape == wanted.shape and bool((each - wanted).abs().max() <= most) for each in outputs)


def _measure(
    network: nn.Module,
    layers: Mapping[str, LayerView],
    products: Products,
    samples: Samples,
    batch_size: int,
    timings: dict[str, list[Timing]],
) -> None:
    """Time each layer in passing, when it is first called, with the inputs it then has."""

    def time(name: str, inputs: Tensor) -> None:
        if name in done:
            return
        done.add(name)
        module, product = layers[name].module, products[name]
        calls: dict[str, Callable[[], Tensor]] = {DENSE: partial(type(module).forward, module, inputs)}
        calls |= {form: partial(SparseLayer(product, {1: form}).eval(), inputs) for form in product.forms}
        timings[name].append(measure(calls, batch_size, product.size(inputs)))

    done: set[str] = set()
    with watching({name: layers[name].module for name in products}, time):
        samples.call(network)


def _forms(timings: Sequence[Timing]) -> dict[int, str]:
    """Return the forms by size; nothing where all are dense."""
    forms = {timing.size: timing.form for timing in timings}
    return {} if set(forms.values()) <= {DENSE} else forms
