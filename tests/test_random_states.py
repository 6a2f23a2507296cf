import torch

from prunekit.random_states import random_states, restore_random_states


def test_the_random_state_comes_back():
    states = random_states()
    first = torch.rand(3)
    assert restore_random_states(states)
    assert torch.equal(torch.rand(3), first)
