"""Convert a pruned network to a copy whose layers run sparse where that is possible and faster.

This module must not know files.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn

from prunekit.deployment.sparse.form_choice import FormTiming, measure
from prunekit.deployment.sparse.input_recorder import LayerInputs, intercepted_calls, record_inputs
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
        layer: name of the layer.
        parameter: name of its weight.
        kind: "linear", "convolution", or the kind that a plugin gives its layers.
        density: kept / total connections of its weight.
        forms: number of samples (rows for a linear layer) -> "vectors", "columns", "taps" or "dense"; other numbers
            take the form of the nearest one. Empty if the layer is always dense.
        timings: one for each measured batch size.
        reason: why the layer is always dense; else "".
    """

    layer: str
    parameter: str
    kind: str
    density: float
    forms: Mapping[int, str] = attrs.field(factory=dict)
    timings: tuple[FormTiming, ...] = ()
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
    """Return a copy of a model whose masked layers run sparse, for inference on the CPU.

        masks = prunekit.select(model, density=0.1)
        network, reports = prunekit.run_sparse(model, masks, torch.randn(32, 784))
        for report in reports:
            print(report.layer, report.forms or report.reason)

    The model is not changed. Measuring takes about 0.3 s per layer and batch size and uses the number of threads that
    torch is set to.

    Args:
        model: any module with float32 or float64 weights on the CPU; dropped weights need not be zero.
        masks: parameter name -> ``torch.bool`` in the shape of the weight, True = keep.
        sample_input: an input of the model: a tensor, a tuple of arguments, or a mapping of named arguments, with the
            batch as first dimension. Layers other than linear ones and convolutions then take this size only.
        batch_sizes: batch sizes in samples at which "auto" measures; other sizes take the form of the nearest one.
        form: "auto" measures each layer, dense and sparse, and keeps the faster form; "csr" measures nothing and runs
            every layer sparse that can.
        view_of: returns the view of a layer; ``None``: the views of the core and of all installed plugins.

    Returns:
        The copy, in evaluation mode, and how each masked layer runs, in the order of the network.

    Raises:
        ConfigError: no batch size or one below 1; an empty sample; "csr" with a torch without MKL; a model that uses
            the weight of a layer outside of that layer.
        MaskError: masks that do not fit the model.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise ConfigError(f"batch_sizes is {list(batch_sizes)}, expected whole numbers of at least 1, such as (1, 8)")
    samples = Samples.of(sample_input)
    # torch's stubs do not type it.
    kernels = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if form == "csr" and not kernels:
        raise ConfigError("form 'csr' needs a torch with MKL, whose sparse kernels it uses; run the model dense")
    network = copy_of(model).eval().requires_grad_(requires_grad=False)
    masks.apply(network)
    layers = masked_layers(network, masks, installed_views() if view_of is None else view_of)
    products: Products = {}
    reasons = dict.fromkeys(layers, "this torch has no sparse kernels for the CPU (MKL)")
    if kernels:
        products, reasons = make_products(network, layers, samples)
    timings: dict[str, list[FormTiming]] = {name: [] for name in layers}
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
    """Return the sparse products of the layers that can run sparse, and the reason for each layer that cannot."""
    reasons = {name: reason for name, view in layers.items() if (reason := _exclusion(view))}
    modules = {name: view.module for name, view in layers.items() if name not in reasons}
    recorded = record_inputs(network, modules, samples)
    products: Products = {}
    for name in modules:
        view, called = layers[name], recorded[name]
        if reason := _unsupported_use(view, called):
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
    """Replace dense layers of a network by sparse ones, in place.

    Raises:
        ConfigError: the network uses the weight of a replaced layer outside of that layer.
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
            "exclude such layers from the masks"
        ) from error
    return network


def _exclusion(view: LayerView) -> str:
    """Return why a layer is excluded before the network runs; "" if it is not."""
    module = view.module
    if not view.observable:
        return f"is computed inside {type(module).__name__}"
    if parameter_of(view) is None:
        return "is parametrized; call torch.nn.utils.parametrize.remove_parametrizations first"
    if view.weight.count_nonzero() == view.weight.numel():
        return "keeps all its weights"
    # An attribute forward on the instance means that some library has wrapped the module.
    if has_forward_hooks(module) or "forward" in vars(module):
        return "has forward hooks, which a sparse layer would not call"
    return ""


def _unsupported_use(view: LayerView, called: LayerInputs) -> str:
    if not called.shapes and not called.unsupported:
        return "is not called as a module for the sample input"
    if called.unsupported:
        return "is called with other arguments than one tensor"
    assert called.dtype is not None
    reason = why_dense(view, tuple(called.shapes[0][1:]), called.dtype)
    if not reason and len({shape[1:] for shape in called.shapes}) > 1 and view.kind not in {"linear", "convolution"}:
        return "is called with inputs of several sizes"
    return reason


def _agree(product: MatrixProduct | TapProducts, module: nn.Module, shape: torch.Size) -> bool:
    """Return True if a product has the outputs of its layer for random inputs."""
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
    timings: dict[str, list[FormTiming]],
) -> None:
    """Run a batch and time each layer at its first call, with the inputs of that call."""

    def time(name: str, inputs: Tensor) -> None:
        if name in done:
            return
        done.add(name)
        module, product = layers[name].module, products[name]
        calls: dict[str, Callable[[], Tensor]] = {DENSE: partial(type(module).forward, module, inputs)}
        calls |= {form: partial(SparseLayer(product, {1: form}).eval(), inputs) for form in product.forms}
        timings[name].append(measure(calls, batch_size, product.size(inputs)))

    done: set[str] = set()
    with intercepted_calls({name: layers[name].module for name in products}, time):
        samples.call(network)


def _forms(timings: Sequence[FormTiming]) -> dict[int, str]:
    """Return the form for each measured size; empty if all are dense."""
    forms = {timing.size: timing.form for timing in timings}
    return {} if set(forms.values()) <= {DENSE} else forms
