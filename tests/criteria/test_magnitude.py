import torch
from torch import nn
from torch.nn.utils import prune

import prunekit
from prunekit.criteria.magnitude import Magnitude
from prunekit.masks.selection import Quota


def test_the_largest_absolute_weights_are_kept():
    weight = torch.tensor([[[0.1, -0.9, 0.5, -0.2]]])
    criterion = Magnitude()
    scores = criterion.score(weight, torch.Generator())
    mask = criterion.select(scores, Quota(0.5, (4,)), torch.Generator())
    assert mask.tolist() == [[[False, True, True, False]]]


def test_no_data_is_needed():
    assert not Magnitude.needs


def test_masks_match_torchs_own_pruning(mixed_network):
    layers = {name: mixed_network[int(name)] for name in ("0", "2", "5", "7")}
    local = prunekit.select(mixed_network, "magnitude", density=0.25, scope="layer").tensors
    overall = prunekit.select(mixed_network, "magnitude", density=0.25, scope="global").tensors
    for name, layer in layers.items():
        twin = nn.Module()
        twin.weight = nn.Parameter(layer.weight.detach().clone())
        # A number: fractions of odd sizes are rounded in different ways.
        prune.l1_unstructured(twin, "weight", int((~local[f"{name}.weight"]).sum()))
        assert torch.equal(twin.weight_mask.bool(), local[f"{name}.weight"])
    dropped = sum(int((~mask).sum()) for mask in overall.values())
    prune.global_unstructured([(layer, "weight") for layer in layers.values()], prune.L1Unstructured, amount=dropped)
    for name, layer in layers.items():
        assert torch.equal(layer.weight_mask.bool(), overall[f"{name}.weight"])
