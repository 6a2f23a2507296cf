"""The check of an export format: bytes, and the network that is read back from them.

It must not know the built-in formats.
"""

import copy
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from prunekit.contracts.export_format import Encoded, ExportFormat, PrunedNetwork, Run
from prunekit.contracts.seeds import Seeds
from prunekit.layers.lookup import find_layers
from prunekit.layers.samples import Samples
from prunekit.pruning.standalone import select
from prunekit.testing.toy_task import ToyNetwork, ToyTask


def check_export_format(export_format: ExportFormat, pruned: PrunedNetwork | None = None) -> None:
    """Check that an export format writes a network that can be read back with the same outputs.

        check_export_format(ExportFormat("npz", "Arrays by name.", encode, reopen, 1e-6, "numpy.load({path})"))

    Args:
        export_format: the format.
        pruned: the network to export, for a format that takes only some; ``None``: ``ToyNetwork`` with a density of
            0.25 in each layer.

    Raises:
        AssertionError: a field is not as ``ExportFormat`` describes it, an error when writing or reading, bytes that
            differ the second time, outputs that differ by more than the tolerance, or a changed network.
    """
    _check_fields(export_format)
    pruned = pruned or toy_pruned_network()
    before = copy.deepcopy(pruned.network.state_dict())
    data = _encode(export_format, pruned)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "exported.bin")
        path.write_bytes(data)
        _check_outputs(export_format, pruned, _reopen(export_format, path, pruned), "the reopened network")
        _check_that_it_reads(export_format, Path(folder, "empty.bin"), pruned)
    _check_form(export_format, pruned)
    after = pruned.network.state_dict()
    changed = [name for name in before if name not in after or not torch.equal(before[name], after[name])]
    assert not changed, f"format {export_format.name!r} changes the network that it exports: {', '.join(changed)}"


def toy_pruned_network() -> PrunedNetwork:
    """Return ``ToyNetwork`` pruned to a density of 0.25 in each layer, and images to run it on."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = ToyNetwork().eval().requires_grad_(False)
    masks = select(network, "magnitude", density=0.25)
    masks.apply(network)
    images, _ = ToyTask().batches("calibration", 0, Seeds(0))[0]
    return PrunedNetwork(network, masks, find_layers(network), Samples.of(images), "ToyNetwork")


def _check_fields(export_format: ExportFormat) -> None:
    name = export_format.name
    assert name.split() == [name], f"the format's name is {name!r}, expected one word"
    for field in ("summary", "load"):
        text = getattr(export_format, field)
        assert len(text.splitlines()) == 1, f"{field} of format {name!r} is {text!r}, expected one line"
    tolerance = export_format.tolerance
    assert 0 <= tolerance < math.inf, f"tolerance of format {name!r} is {tolerance}, expected a number of at least 0"
    assert "{path}" in export_format.load, f"load of format {name!r} is {export_format.load!r}, expected {{path}} in it"
    try:
        export_format.load.format(path="'file'")
    except (LookupError, ValueError) as error:
        raise AssertionError(
            f"load of format {name!r} is {export_format.load!r}, which has other braces than {{path}}; double them"
        ) from error


def _encode(export_format: ExportFormat, pruned: PrunedNetwork) -> bytes:
    """Return the bytes of a file, after encoding twice."""
    name = export_format.name
    try:
        encoded, again = export_format.encode(pruned), export_format.encode(pruned)
    except Exception as error:
        raise AssertionError(f"encode of format {name!r} failed: {type(error).__name__}: {error}") from error
    assert isinstance(encoded, Encoded), f"encode of format {name!r} returns {type(encoded).__name__}, expected Encoded"
    assert isinstance(encoded.data, bytes), f"format {name!r} encodes {type(encoded.data).__name__}, expected bytes"
    assert encoded.data, f"format {name!r} encodes an empty file"
    assert not any("\n" in note for note in encoded.notes), f"a note of format {name!r} has more than one line"
    assert encoded.data == again.data, f"format {name!r} encodes other bytes the second time; leave out times and ids"
    return encoded.data


def _reopen(export_format: ExportFormat, path: Path, pruned: PrunedNetwork) -> Run:
    try:
        return export_format.reopen(path, pruned)
    except Exception as error:
        raise AssertionError(
            f"reopen of format {export_format.name!r} failed: {type(error).__name__}: {error}"
        ) from error


def _check_outputs(export_format: ExportFormat, pruned: PrunedNetwork, run: Run, what: str) -> None:
    """Compare outputs on all samples, and on one sample alone."""
    for samples in (pruned.samples, pruned.samples.take(1)):
        expected = pruned.outputs(samples)
        try:
            found = run(samples)
        except Exception as error:
            raise AssertionError(
                f"{what} of format {export_format.name!r} failed on {samples.count} samples: "
                f"{type(error).__name__}: {error}"
            ) from error
        _check_close(expected, found, export_format.tolerance, f"{what} of format {export_format.name!r}")


def _check_close(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float, what: str) -> None:
    shapes, found_shapes = ([tuple(tensor.shape) for tensor in tensors] for tensors in (expected, found))
    assert shapes == found_shapes, f"{what} returns outputs of shapes {found_shapes}, expected {shapes}"
    for one, other in zip(expected, found, strict=True):
        error = float((one.double() - other.double()).abs().max())
        allowed = tolerance * max(1.0, float(one.abs().max()))
        assert error <= allowed, f"{what} has an output that differs by {error:.3g}, more than {allowed:.3g}"


def _check_that_it_reads(export_format: ExportFormat, path: Path, pruned: PrunedNetwork) -> None:
    path.write_bytes(b"")
    try:
        export_format.reopen(path, pruned)(pruned.samples)
    except Exception:  # noqa: BLE001 - any error will do
        return
    raise AssertionError(f"reopen of format {export_format.name!r} accepts an empty file, so it does not read the file")


def _check_form(export_format: ExportFormat, pruned: PrunedNetwork) -> None:
    if export_format.form is None:
        return
    try:
        form = export_format.form(pruned)
    except Exception as error:
        raise AssertionError(
            f"form of format {export_format.name!r} failed: {type(error).__name__}: {error}"
        ) from error
    assert form is not pruned.network, f"form of format {export_format.name!r} returns the exported network itself"
    _check_outputs(export_format, pruned, lambda samples: samples.through(form), "the form")
