"""Comparing outputs: differences, tolerances and messages."""

import math

import pytest
import torch

from prunekit.deployment.output_check import compare, difference


def test_infinities_and_nans_equal_only_themselves():
    values = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf, -4.0])
    assert difference(values, values.clone()) == (0, 4)
    for place, other in ((0, torch.nan), (1, 0.0), (2, -torch.inf), (2, torch.nan), (4, torch.inf)):
        changed = values.clone()
        changed[place] = other
        assert difference(values, changed)[0] == math.inf
        assert "off by inf" in compare([values], [changed], 1e6)[1]


def test_integers_booleans_and_empty_tensors_are_compared():
    assert difference(torch.tensor([1, 5]), torch.tensor([1, 2])) == (3, 5)
    assert difference(torch.tensor([True, False]), torch.tensor([True, True])) == (1, 1)
    assert difference(torch.empty(0, 3), torch.empty(0, 3)) == (0, 0)
    assert compare([], [], 0.0) == (0, "")


def test_the_imaginary_part_counts():
    assert difference(torch.tensor([3 + 4j]), torch.tensor([3 + 2j])) == (2, 5)


def test_each_tensor_is_judged_by_its_own_largest_value():
    large, small = torch.tensor([1000.0]), torch.tensor([1.0])
    assert compare([large, small], [large + 0.5, small], 1e-3) == (0.5, "")
    error, problem = compare([large, small], [large, small + 0.5], 1e-3)
    assert (error, problem) == (0.5, "an output is off by 0.5, more than 0.001 (largest value: 1)")


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7)])
def test_values_in_half_precision_may_be_off_by_eight_units_in_the_last_place(dtype, rounding):
    one = torch.ones(1, dtype=dtype)
    assert compare([one], [one + 8 * rounding], 1e-6) == (8 * rounding, "")
    assert "off by" in compare([one], [one + 9 * rounding], 1e-6)[1]


def test_other_shapes_and_other_numbers_of_tensors_are_reported():
    one = torch.zeros(2, 3)
    assert compare([one], [one.T], 1.0)[1] == "the outputs have the shapes [3, 2], expected [2, 3]"
    assert compare([one], [], 1.0)[1] == "the outputs have the shapes none, expected [2, 3]"
