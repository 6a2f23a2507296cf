import random

import numpy as np
import pytest
import torch

from prunekit.distributed.random_state import (
    random_state,
    random_states,
    restore_random_states,
    seed_all,
    set_random_state,
)


def draw():
    return [torch.rand(2).tolist(), random.gauss(0, 1), random.random(), *np.random.standard_normal(3).tolist()]  # noqa: NPY002


@pytest.mark.parametrize("draws_before", [0, 1, 2])  # after an odd number, both keep the second of a pair of normals
def test_all_generators_are_restored(draws_before):
    seed_all(2**40 + 1)
    for _ in range(draws_before):
        draw()
    state = random_state()
    first = draw()
    set_random_state(state)
    assert draw() == first


def test_a_seed_decides_all_draws():
    seed_all(7)
    first = draw()
    seed_all(7)
    assert draw() == first
    seed_all(8)
    assert draw()[1:] != first[1:]


def test_the_states_of_all_ranks_include_those_of_this_one():
    states = random_states()
    first = draw()
    assert restore_random_states(states)
    assert draw() == first
