"""Scores compared with published implementations, on the same weights and data."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import prunekit
from prunekit.masks.selection import Blocks

pruning = pytest.importorskip("torch_pruning", reason="comparison with a peer; it comes with the extra 'dev'")


@pytest.mark.parametrize(("layer", "shape"), [(nn.Linear(20, 12), (20,)), (nn.Conv2d(4, 12, 3), (4, 3, 3))])
def test_whole_units_by_gradient_match_torch_pruning(layer, shape):
    """Its Taylor importance of a unit is the sum of |w * g| over its weights: "snip" with the pattern Units."""
    torch.manual_seed(0)
    model = nn.Sequential(layer, nn.Flatten())
    nn.init.normal_(layer.weight)
    batch = (torch.randn(30, *shape), torch.randint(12, (30,)))

    def loss(model, batch):
        return cross_entropy(model(batch[0]), batch[1])

    loss(model, batch).backward()
    graph = pruning.DependencyGraph().build_dependency(model, example_inputs=batch[0])
    linear = isinstance(layer, nn.Linear)
    prune = pruning.prune_linear_out_channels if linear else pruning.prune_conv_out_channels
    group = graph.get_pruning_group(layer, prune, idxs=list(range(12)))
    importance = pruning.importance.TaylorImportance(normalizer=None, target_types=[type(layer)])(group)
    masks = prunekit.select(
        model,
        "snip",
        density=0.5,
        scope="layer",
        pattern=Blocks(1, layer.weight[0].numel()),
        batches=[batch],
        loss=loss,
    )
    kept = masks.tensors["0.weight"].flatten(1).all(1)
    assert set(kept.nonzero().flatten().tolist()) == set(importance.topk(6).indices.tolist())
