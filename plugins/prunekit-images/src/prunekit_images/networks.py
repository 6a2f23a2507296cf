"""Which networks there are, and whether one can be made for images of some shape. It must not know training."""

from torch import nn

from prunekit.errors import ConfigError
from prunekit_images.lenet import LeNet5, LeNet300
from prunekit_images.resnet import ResNet
from prunekit_images.vit import VisionTransformer, patch_side

Shape = tuple[int, int, int]


def check_network(name: str, shape: Shape) -> None:
    """Refuse images that a network cannot take.

    Args:
        name: of the network.
        shape: colours, rows and columns.

    Raises:
        ConfigError: saying what it can take.
    """
    _, rows, columns = shape
    if name == "lenet-5" and min(rows, columns) < LeNet5.LEAST_SIDE:
        least = LeNet5.LEAST_SIDE
        raise ConfigError(
            f"task.network is 'lenet-5', which takes images of at least {least}x{least}, but these are "
            f"{rows}x{columns}; take another network, for example lenet-300-100"
        )
    if name == "vit" and patch_side(rows, columns) is None:
        raise ConfigError(
            f"task.network is 'vit', but no square patches tile images of {rows}x{columns}; "
            "take another network, for example resnet"
        )


def build_network(name: str, shape: Shape, classes: int, width: int | None, blocks: int | None) -> nn.Module:
    """Return a network, freshly initialised from torch's global generator.

    Args:
        name: "lenet-300-100", "lenet-5", "resnet" or "vit"; checked.
        shape: colours, rows and columns of an image.
        classes: how many scores it gives.
        width: of "resnet" and "vit".
        blocks: of "resnet" (in each of its three stages) and "vit".
    """
    if name == "lenet-300-100":
        return LeNet300(shape, classes)
    if name == "lenet-5":
        return LeNet5(shape, classes)
    assert width is not None
    assert blocks is not None
    if name == "resnet":
        return ResNet(shape, classes, width, blocks)
    patch = patch_side(*shape[1:])
    assert patch is not None
    return VisionTransformer(shape, classes, width, blocks, patch)
