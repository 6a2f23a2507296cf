"""Files of compressed sparse rows: store a pruned network and load it into a dense model, whose layers run sparse.

The format is safetensors. Each masked weight is a matrix of ``columns`` (the longest product of its last dimensions
that 16 bits can index, at least its last dimension) in three tensors: ``<name>_crow``, int32 ``[rows + 1]``, where each
row begins; ``<name>_col``, the columns of the kept values, uint8, uint16 or int32, ascending in each row; and
``<name>_values``. A weight that would grow by this, and every other tensor of the state dict, is stored unchanged, a
tied one once. The header (see ``prunekit.files.headers``) also has ``matrices`` (name -> columns), ``tied`` (name ->
name it is stored under) and ``forms`` (layer -> number of samples -> form). Nothing is unpickled, and no header makes
a reader allocate more memory than the model has, because all sizes are those of the model.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from prunekit.deployment.sparse.conversion import LayerReport, make_products, put_in
from prunekit.deployment.sparse.sparse_layer import DENSE
from prunekit.errors import CheckpointError
from prunekit.files.atomic import write_atomically
from prunekit.files.headers import check_header, damaged, encode_metadata, refuse_other_kinds
from prunekit.files.safetensors_files import open_tensors, read_header, some
from prunekit.layers.lookup import masked_layers
from prunekit.layers.samples import Samples
from prunekit.layers.view import ViewOf
from prunekit.masks.masks import Masks
from prunekit.masks.matching import match_names
from prunekit.masks.reparametrized import copy_of
from prunekit.plugins.manager import installed_views

KIND = "csr"
_PARTS = ("crow", "col", "values")
_NARROW = ((2**8, torch.uint8), (2**16, torch.uint16))
_DTYPE_NAMES = {torch.uint8: "U8", torch.uint16: "U16", torch.int32: "I32"}


def save_csr(path: str | os.PathLike[str], model: nn.Module, masks: Masks, reports: tuple[LayerReport, ...]) -> None:
    """Write a pruned model as compressed sparse rows, atomically.

        network, reports = prunekit.run_sparse(model, masks, sample_input)
        prunekit.save_csr("model.safetensors", model, masks, reports)

    Args:
        path: file to write, usually with the suffix ``.safetensors``.
        model: the dense model passed to ``run_sparse``.
        masks: the masks passed to ``run_sparse``.
        reports: the reports it returned; they say which layers run sparse, and in which form.

    Raises:
        CheckpointError: the file cannot be written.
        MaskError: masks that fit no weight.
    """
    write_atomically(path, encode_csr(model, masks, reports))


def encode_csr(model: nn.Module, masks: Masks, reports: tuple[LayerReport, ...]) -> bytes:
    """Return the bytes that ``save_csr`` writes.

    Raises:
        CheckpointError: a tensor of the model has the name of a tensor of compressed rows.
        MaskError: masks that fit no weight.
    """
    state = model.state_dict(keep_vars=True)
    matched = match_names(masks.tensors, state)
    tensors: dict[str, Tensor] = {}
    matrices, tied, first = dict[str, int](), dict[str, str](), dict[int, str]()
    for name, tensor in state.items():
        if first.setdefault(id(tensor), name) != name:
            tied[name] = first[id(tensor)]
    mask_of = {id(tensor): mask for tensor, mask in matched.values()}
    for name, tensor in state.items():
        if name in tied:
            continue
        weight = tensor.detach().cpu().contiguous()
        if id(tensor) in mask_of:
            mask = mask_of[id(tensor)].cpu()
            weight = weight.masked_fill(~mask, 0)
            columns = _columns(weight.shape)
            parts = _compressed(weight.reshape(-1, columns), mask.reshape(-1, columns))
            if sum(part.nbytes for part in parts) < weight.nbytes:
                tensors |= {f"{name}_{kind}": part for kind, part in zip(_PARTS, parts, strict=True)}
                matrices[name] = columns
                continue
        tensors[name] = weight.clone()
    if len(tensors) != len(state) - len(tied) + 2 * len(matrices):
        raise CheckpointError(
            "cannot write compressed rows: a tensor of the model is named like a part of another "
            "(_crow, _col or _values); rename it"
        )
    forms = {report.layer: {str(size): form for size, form in report.forms.items()} for report in reports}
    content = {
        "matrices": matrices,
        "tied": tied,
        "forms": {layer: found for layer, found in forms.items() if found},
    }
    return safetensors.torch.save(tensors, encode_metadata(KIND, content))


def load_csr(
    path: str | os.PathLike[str], model: nn.Module, sample_input: Any, *, view_of: ViewOf | None = None
) -> nn.Module:
    """Load a file of compressed sparse rows into a copy of a dense model, whose layers then run sparse.

        network = prunekit.load_csr("model.safetensors", make_model(), torch.randn(1, 784))
        outputs = network(inputs)

    Nothing is measured: the file has the forms chosen when it was written.

    Args:
        path: a file written by ``save_csr`` or ``prunekit export --to csr``.
        model: the same architecture with any weights, on the CPU; it is not changed.
        sample_input: an input of the model; see ``run_sparse``.
        view_of: returns the view of a layer; ``None``: the views of the core and of all installed plugins.

    Returns:
        The copy, in evaluation mode.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or does not fit the model.
    """
    path = Path(path)
    refuse_other_kinds(path, (KIND,), CheckpointError)
    network = copy_of(model).eval().requires_grad_(requires_grad=False)
    state = network.state_dict()
    with open_tensors(path, CheckpointError) as file:
        header = _header(read_header(file, path, CheckpointError), path)
        weights = _read(file, header, state, path)
    network.load_state_dict(weights)
    masks = Masks({name: weights[name] != 0 for name in header["matrices"]})
    found = masked_layers(network, masks, installed_views() if view_of is None else view_of)
    if unknown := sorted(header["forms"].keys() - found.keys()):
        raise CheckpointError(
            f"{path}: the model has no masked layers named {some(unknown)}; build the model that was exported"
        )
    layers = {name: found[name] for name in header["forms"]}
    samples = Samples.of(sample_input)
    products, reasons = make_products(network, layers, samples)
    for name, reason in reasons.items():
        raise CheckpointError(f"{path}: {name!r} runs sparse in the file, but in this model it {reason}")
    forms = {name: {int(size): form for size, form in found.items()} for name, found in header["forms"].items()}
    for name, product in products.items():
        if odd := sorted(set(forms[name].values()) - {*product.forms, DENSE}):
            raise CheckpointError(f"{path}: {name!r} has no form {some(odd)}; the file is damaged, write it again")
    return put_in(network, layers, products, forms, samples)


def _columns(shape: torch.Size) -> int:
    """Return the number of columns of the matrix that stores a weight."""
    products = [math.prod(shape[axis:]) for axis in range(len(shape) - 1, 0, -1)]
    return max([product for product in products if product <= _NARROW[-1][0]], default=shape[-1] if shape else 1)


def _index(columns: int) -> torch.dtype:
    return next((dtype for most, dtype in _NARROW if columns <= most), torch.int32)


def _compressed(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    ends = mask.sum(1).cumsum(0)
    crow = torch.cat([ends.new_zeros(1), ends]).int()
    return crow, mask.nonzero()[:, 1].to(_index(mask.shape[1])), weight[mask]


def _header(header: dict[str, Any] | None, path: Path) -> dict[str, Any]:
    """Check the types in the header and return it."""
    header = check_header(header, (KIND,), path, CheckpointError)
    matrices, tied, forms = (header.get(key) for key in ("matrices", "tied", "forms"))
    good = (
        isinstance(matrices, dict)
        and all(type(columns) is int and columns > 0 for columns in matrices.values())
        and isinstance(tied, dict)
        and all(isinstance(name, str) for name in tied.values())
        and isinstance(forms, dict)
        and all(map(_is_forms, forms.values()))
    )
    if not good:
        raise CheckpointError(damaged(path).format("matrices, tied or forms"))
    return header


def _is_forms(forms: Any) -> bool:
    most = 9  # digits
    return (
        isinstance(forms, dict)
        and bool(forms)
        and all(size.isascii() and size.isdecimal() and len(size) <= most and int(size) for size in forms)
        and all(isinstance(form, str) for form in forms.values())
    )


def _read(file: Any, header: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Read the state dict of an open file and check it against that of the model."""
    matrices, tied = header["matrices"], header["tied"]
    parts = {f"{name}_{part}" for name in matrices for part in _PARTS}
    keys = set(file.keys())
    names = (keys - parts) | matrices.keys()
    if odd := sorted((parts - keys) | (set(tied.values()) - names) | (names & tied.keys()) | (matrices.keys() & keys)):
        raise CheckpointError(f"{path}: header and tensors differ in {some(odd)}; the file is damaged, write it again")
    if odd := sorted((names | tied.keys()) ^ state.keys()):
        raise CheckpointError(
            f"{path}: is of another network, they differ in {some(odd)}; build the model that was exported"
        )
    weights = {}
    for name in sorted(names):
        model = state[name]
        if name in matrices:
            weights[name] = _dense(file, name, matrices[name], model, path)
        else:
            weights[name] = _tensor(file, name, list(model.shape), path)
        if weights[name].dtype != model.dtype:
            raise CheckpointError(
                f"{path}: {name} is {weights[name].dtype}, but {model.dtype} in the model; convert the model first"
            )
    for name, other in tied.items():
        if weights[other].shape != state[name].shape:
            raise CheckpointError(
                f"{path}: {name} has the shape of {other}, expected {list(state[name].shape)}; "
                "build the model that was exported"
            )
    return weights | {name: weights[other] for name, other in tied.items()}


def _tensor(file: Any, key: str, shape: list[int], path: Path, dtype: str | None = None) -> Tensor:
    """Read a tensor after checking the shape and dtype that the file declares."""
    entry = file.get_slice(key)
    if entry.get_shape() != shape or dtype not in {None, entry.get_dtype()}:
        raise CheckpointError(
            f"{path}: {key} is {entry.get_dtype()} {entry.get_shape()}, expected {dtype or ''}{shape}; "
            "build the same model, or write the file again"
        )
    tensor: Tensor = file.get_tensor(key)
    return tensor


def _dense(file: Any, name: str, columns: int, model: Tensor, path: Path) -> Tensor:
    """Check compressed rows and return the dense weight."""
    wrong = f"{path}: {name}_{{}} {{}}; the file is damaged, write it again"
    if columns != _columns(model.shape) or not model.numel():
        raise CheckpointError(
            f"{path}: {name} has {columns} columns, {list(model.shape)} in the model; build the model that was exported"
        )
    rows = model.numel() // columns
    crow = _tensor(file, f"{name}_crow", [rows + 1], path, "I32").long()
    counts = crow.diff()
    if crow[0] != 0 or bool((counts < 0).any()) or bool((counts > columns).any()):
        raise CheckpointError(wrong.format("crow", "does not say where rows begin"))
    kept = int(crow[-1])
    col = _tensor(file, f"{name}_col", [kept], path, _DTYPE_NAMES[_index(columns)]).long()
    values = _tensor(file, f"{name}_values", [kept], path)
    places = torch.repeat_interleave(torch.arange(rows), counts) * columns + col
    if bool((col < 0).any()) or bool((col >= columns).any()) or bool((places.diff() <= 0).any()):
        raise CheckpointError(wrong.format("col", "is not ascending, or beyond the last column"))
    dense = values.new_zeros(model.numel())
    dense[places] = values
    return dense.reshape(model.shape)
