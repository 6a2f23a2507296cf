import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prunekit_deepid2plus.pairs import balanced_pairs, evenly_drawn, occurrences, pairs_of_one

from prunekit.contracts.seeds import Seeds


def test_occurrences_counts_the_equal_entries_before() -> None:
    assert occurrences(torch.tensor([2, 0, 2, 2, 0, 1])).tolist() == [0, 0, 1, 2, 1, 0]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(2, 6), min_size=4, max_size=30), st.integers(0, 100))
def test_pairs_are_balanced_distinct_and_share_nobody_over_folds(counts: list[int], seed: int) -> None:
    people = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    pairs = balanced_pairs(people, Seeds(seed), folds=10, most=8)
    folds = min(10, len(counts) // 2)
    assert torch.unique(pairs.fold).tolist() == list(range(folds))
    assert torch.equal(people[pairs.first] == people[pairs.second], pairs.same)
    assert len({frozenset(pair) for pair in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)}) == len(
        pairs.same
    )
    groups = []
    for fold in range(folds):
        here = pairs.fold == fold
        assert 0 < int((pairs.same & here).sum()) == int((~pairs.same & here).sum()) <= 8
        groups.append(set(people[torch.cat([pairs.first[here], pairs.second[here]])].tolist()))
    assert sum(map(len, groups)) == len(set().union(*groups))


def test_a_much_photographed_person_does_not_fill_a_fold() -> None:
    people = torch.tensor([0] * 10 + [1, 1] + [2] * 2 + [3] * 2)
    pairs = balanced_pairs(people, Seeds(0), folds=1, most=4)
    assert sorted(people[pairs.first[pairs.same]].tolist()) == [0, 1, 2, 3]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_pairs_of_one_person_are_all_of_them_once(owners: list[int]) -> None:
    first, second = pairs_of_one(torch.tensor(owners))
    expected = {frozenset((i, j)) for i in range(len(owners)) for j in range(i) if owners[i] == owners[j]}
    assert {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)} == expected
    assert len(first) == len(expected)


def test_a_draw_takes_two_images_of_everybody_before_more_and_single_images_last() -> None:
    people = torch.tensor([0] * 9 + [1, 2, 2, 3, 3, 3, 4])
    assert evenly_drawn(people, 99, Seeds(0)).tolist() == list(range(16))
    assert people[evenly_drawn(people, 6, Seeds(0))].tolist() == [0, 0, 2, 2, 3, 3]
    assert people[evenly_drawn(people, 14, Seeds(0))].tolist() == [0] * 9 + [2, 2, 3, 3, 3]
    draws = [evenly_drawn(people, 6, Seeds(seed)).tolist() for seed in range(4)]
    assert draws[0] == evenly_drawn(people, 6, Seeds(0)).tolist()
    assert any(draw != draws[0] for draw in draws)


def test_a_draw_is_not_of_the_first_people_alone() -> None:
    people = torch.arange(100).repeat_interleave(2)
    owners = people[evenly_drawn(people, 50, Seeds(0))]
    assert owners.unique(return_counts=True)[1].tolist() == [2] * 25
    assert 30 < float(owners.float().mean()) < 70
