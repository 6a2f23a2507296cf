import torch
from hypothesis import given
from hypothesis import strategies as st

from prunekit.contracts.seeds import Seeds

USES = st.lists(st.one_of(st.text(max_size=5), st.integers(0, 1000)), max_size=4)


@given(st.integers(0, 2**40), USES, USES)
def test_seeds_differ_by_use_and_root_and_are_reproducible(root, use, other):
    seed = Seeds(root).derive(*use)
    assert seed == Seeds(root).derive(*use)
    assert 0 <= seed < 2**63
    assert (seed == Seeds(root).derive(*other)) == (use == other)
    assert seed != Seeds(root + 1).derive(*use)


def test_the_seeds_are_the_same_on_every_machine():
    assert Seeds(0).derive("initial weights") == 1155738565434251426


def test_a_generator_draws_the_same_numbers_twice():
    first, second = (torch.rand(4, generator=Seeds(3).generator("x", 1)) for _ in range(2))
    assert torch.equal(first, second)
