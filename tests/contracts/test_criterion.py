import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

import prunekit

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("name", ["wanda", "snip", "taylor", "fisher", "obs", "sparsegpt", "grasp", "synflow"])
@settings(deadline=None, max_examples=6)
@given(order=st.permutations(range(5)), density=st.sampled_from([0.1, 0.37, 0.8]))
def test_masks_do_not_depend_on_the_order_of_batches(name, order, density):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 3)
    )
    batches = [(torch.randn(size, 2, 6, 6), torch.randint(3, (size,))) for size in (5, 3, 8, 4, 1)]

    def masks(batches):
        return prunekit.select(
            model,
            name,
            density=density,
            batches=batches,
            loss=lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
        )

    assert masks([batches[index] for index in order]) == masks(batches)
