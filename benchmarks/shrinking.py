"""What is gained when units that are gone are removed: latency of the shrunk network beside the dense one.

Half of the units of each layer go, those that are added up together: of a small ResNet, of DeepID2+, and of the
convolutions of DeepID2+ alone. A quarter of the multiply-adds is left between two such layers, half of them where one
side stays (the first layer, and what follows the last one). Weights are random; batch normalisation has seen a batch.

Each network runs in three forms, beside the dense one in the same form: as it is; with its convolutions in
channels-last order; exported to ONNX and run by onnxruntime, which also folds batch normalisation.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product

import onnxruntime  # type: ignore[import-untyped]  # it has none
import torch
from measuring import Row, interleaved
from prunekit_deepid2plus.network import Network, NetworkSettings
from prunekit_images.resnet import ResNet
from torch import Tensor, nn

from prunekit import Masks
from prunekit.contracts.export_format import PrunedNetwork
from prunekit.deployment.export.onnx import FORMAT as ONNX
from prunekit.deployment.shrinking import coupled_masks, shrink
from prunekit.layers.samples import Samples

DENSITY = 0.5
TARGET, LARGEST_ERROR = 0.4, 1e-5
REPEATS = 9
IN_A_ROW = 8  # calls of one network, so that it finds its own weights in the cache, as where it runs alone


def make_network(make: Callable[[], nn.Module], images: Tensor) -> nn.Module:
    """Return a network in evaluation mode that has seen some images."""
    torch.manual_seed(0)
    network = make()
    network(images)
    return network.eval()


def masks_of(network: nn.Module, images: Tensor, *, convolutions: bool) -> Masks:
    """Return masks of half the units, of all layers or of convolutions alone."""
    masks = coupled_masks(network, images, DENSITY)
    if not convolutions:
        return masks
    kept = {name: mask for name, mask in masks.tensors.items() if name.startswith(("conv", "norm1", "norm2", "norm3"))}
    return Masks(kept | {name: mask for name, mask in masks.tensors.items() if name.startswith("norm4")})


def in_onnxruntime(network: nn.Module, images: Tensor) -> Callable[[Tensor], object]:
    """Return what runs a network's export, with the threads of this process."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait would slow the others
    file = ONNX.encode(PrunedNetwork(network, Masks({}), {}, Samples.of(images), "")).data
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    [inputs] = session.get_inputs()
    return lambda batch: session.run(None, {inputs.name: batch.numpy()})


def forms(network: nn.Module, images: Tensor) -> Mapping[str, Callable[[Tensor], object]]:
    """Return the forms of a network."""
    channels_last = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return {"": network, ", channels last": channels_last, ", onnxruntime": in_onnxruntime(network, images)}


def run(network: Callable[[Tensor], object], images: Tensor) -> None:
    """Call a network several times."""
    for _ in range(IN_A_ROW):
        network(images)


@torch.no_grad()
def rows() -> Iterator[Row]:
    """Measure in turns."""
    faces = partial(Network, NetworkSettings())
    for what, make, shape, batches, convolutions in (
        (
            "ResNet-8 of width 16, half the filters",
            partial(ResNet, (3, 32, 32), 10, 16, 1),
            (3, 32, 32),
            (1, 32),
            False,
        ),
        (
            "ResNet-8 of width 64, half the filters",
            partial(ResNet, (3, 32, 32), 10, 64, 1),
            (3, 32, 32),
            (1, 32),
            False,
        ),
        ("DeepID2+, half the units", faces, (3, 112, 96), (1, 8), False),
        ("DeepID2+, half the filters of convolutions", faces, (3, 112, 96), (1, 8), True),
    ):
        images = torch.randn(max(batches), *shape, generator=torch.Generator().manual_seed(0))
        network = make_network(make, images)
        masks = masks_of(network, images[:1], convolutions=convolutions)
        shrunk = shrink(network, images[:2], masks)
        masks.apply(network)
        dense_forms, shrunk_forms = forms(network, images[:2]), forms(shrunk.network, images[:2])
        for form, batch in product(dense_forms, batches):
            calls = {
                "dense": partial(run, dense_forms[form], images[:batch]),
                "shrunk": partial(run, shrunk_forms[form], images[:batch]),
            }
            times = {name: time / IN_A_ROW for name, time in interleaved(calls, REPEATS).items()}
            yield Row(f"{what}, batch {batch}{form}", times["shrunk"], "dense", times["dense"], TARGET)
        yield Row(f"{what}, outputs", shrunk.error, "allowed", LARGEST_ERROR, LARGEST_ERROR, absolute=True, unit="")
