"""Features of faces: the outputs of the network for images and their mirror images, batch by batch.

This module must not know how features are compared.
"""

import torch
from torch import Tensor, nn

from prunekit_deepid2plus.batches import to_float

MIRRORS = ("mean", "concatenate")

EVALUATION_BATCH = 256
"""Images in one forward pass without gradients."""


def face_features(network: nn.Module, images: Tensor, mirror: str, device: torch.device) -> Tensor:
    """Return the features of images, combined with those of their mirror images.

    Args:
        network: returns features ``[samples, values]`` of float images.
        images: uint8 ``[images, 3, rows, columns]``.
        mirror: "mean" averages the two features of a face; "concatenate" joins them.
        device: runs the network.

    Returns:
        float32 ``[images, values]`` on the CPU; for "concatenate" ``[images, 2 * values]``.
    """
    features = []
    for batch in torch.split(images, EVALUATION_BATCH):
        faces = to_float(batch.to(device))
        both = network(faces).float(), network(faces.flip(3)).float()
        features.append((torch.cat(both, 1) if mirror == "concatenate" else (both[0] + both[1]) / 2).cpu())
    return torch.cat(features)
