from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunekit.errors import MaskError
from prunekit.masks.masks import Masks, load_masks
from prunekit.masks.matching import match, plain_name
from prunekit.masks.overlap import MaskOverlap, total_overlap
from prunekit.masks.zeroing import BLOCK, MaskApplier

bits = st.lists(st.booleans(), min_size=12, max_size=12).map(lambda kept: torch.tensor(kept).reshape(3, 4))
pairs_of_masks = st.tuples(bits, bits).map(lambda pair: tuple(Masks({"a": one, "b": one[:2]}) for one in pair))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def random_masks(model: nn.Module, density: float = 0.4) -> Masks:
    return Masks({name: torch.rand(p.shape) < density for name, p in model.named_parameters() if p.dim() > 1})


def is_positive_zero(tensor: Tensor) -> bool:
    return bool((tensor == 0).all()) and not bool(tensor.signbit().any())


@pytest.mark.parametrize("mask", [torch.ones(3), torch.tensor([1, 0]), torch.tensor([float("nan")]), [True], None])
def test_a_mask_that_is_not_a_bool_tensor_is_refused_by_name(mask: Any) -> None:
    with pytest.raises(MaskError, match=r"mask of 'fc.weight' is .*, expected a dense torch.bool tensor"):
        Masks({"fc.weight": mask})


def test_masks_do_not_change_with_the_dictionary_they_were_made_from() -> None:
    source = {"a": torch.ones(2, dtype=torch.bool)}
    masks = Masks(source, {"seed": 1})
    source.clear()
    assert list(masks.tensors) == ["a"]
    assert repr(masks) == "<Masks of 1 weights, density 1>"


@settings(deadline=None, max_examples=50)
@given(pairs_of_masks)
def test_the_algebra_is_that_of_sets(pair: tuple[Masks, Masks]) -> None:
    first, second = pair
    assert ~(first & second) == ~first | ~second
    assert first - second == first & ~second
    assert ~~first == first
    assert (first - second) | (first & second) == first
    assert (first == second) == all(torch.equal(first.tensors[name], second.tensors[name]) for name in "ab")


@settings(deadline=None, max_examples=50)
@given(pairs_of_masks)
def test_a_comparison_counts_like_plain_loops(pair: tuple[Masks, Masks]) -> None:
    first, second = pair
    for name, comparison in first.compare(second).items():
        zipped = list(zip(first.tensors[name].flatten().tolist(), second.tensors[name].flatten().tolist(), strict=True))
        expected = [zipped.count(case) for case in [(True, True), (True, False), (False, True), (False, False)]]
        assert comparison == MaskOverlap(*expected)
        assert comparison.hamming == sum(one != other for one, other in zipped)
        either = sum(one or other for one, other in zipped)
        assert comparison.overlap == (expected[0] / either if either else 1.0)


def test_masks_of_different_networks_are_not_combined() -> None:
    first = Masks({"a": torch.ones(2, dtype=torch.bool), "b": torch.ones(2, dtype=torch.bool)})
    second = Masks({"c": torch.ones(2, dtype=torch.bool), "b": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(MaskError, match=r"'a' is only in one.*'c' is only in one.*'b' is \[2\] and \[3\]"):
        first & second
    assert first != second
    assert first != "masks"


def test_density_is_kept_by_total_overall_and_per_weight() -> None:
    masks = Masks({"a": torch.tensor([True, False, False, False]), "b": torch.ones(2, dtype=torch.bool)})
    assert masks.density() == 0.5
    assert masks.densities() == {"a": 0.25, "b": 1.0}
    assert Masks({}).density() == 1.0


def test_masks_are_read_off_zeros_and_applied_to_another_model(tmp_path: Path) -> None:
    pruned, other = network(), network()
    masks = random_masks(pruned)
    masks.apply(pruned)
    assert Masks.from_zeros(pruned) == masks
    Masks.from_zeros(pruned).save(tmp_path / "m.safetensors")
    load_masks(tmp_path / "m.safetensors").apply(other)
    assert Masks.from_zeros(other) == masks
    assert bool((other[1].weight == 1).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "layout",
    [
        lambda tensor: tensor,
        lambda tensor: tensor.to(memory_format=torch.channels_last),
        lambda tensor: tensor.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        lambda tensor: tensor.repeat_interleave(2, 1)[:, ::2],
    ],
)
def test_kept_bits_are_unchanged_and_dropped_values_become_zero(
    dtype: torch.dtype, layout: Callable[[Tensor], Tensor]
) -> None:
    values = torch.randn(4, 3, 5, 7)
    values[0] = -0.0
    values[1] = float("nan")
    values[2] = -float("inf")
    mask = torch.rand(values.shape) < 0.5
    tensor = layout(values.to(dtype)).clone(memory_format=torch.preserve_format)
    for keep in (MaskApplier(mask), MaskApplier(layout(mask))):
        changed = tensor.clone(memory_format=torch.preserve_format)
        keep(changed)
        keep(changed)
        assert is_positive_zero(changed[~mask])
        integers = torch.int64 if dtype == torch.float64 else torch.int32 if dtype == torch.float32 else torch.int16
        assert torch.equal(changed[mask].view(integers), tensor[mask].view(integers))


def test_one_applier_masks_tensors_of_every_kind_in_turn() -> None:
    mask = torch.rand(5, 7) < 0.5
    keep = MaskApplier(mask)
    kinds: list[Callable[[Tensor], Tensor]] = [
        lambda values: values,
        lambda values: values.t().contiguous().t(),
        lambda values: values.double(),
        lambda values: values.bfloat16(),
        lambda values: values.half(),  # as wide as the one before
        torch.nn.Parameter,
        lambda values: values.clone().requires_grad_() * 1,  # of a graph
        lambda values: values.repeat_interleave(2, 1)[:, ::2],
    ]
    for _ in range(3):
        for kind in kinds:
            tensor = kind(-torch.rand(5, 7) - 1)
            expected = torch.where(mask, tensor.detach(), 0)
            keep(tensor)
            assert torch.equal(tensor.detach(), expected)
            assert is_positive_zero(tensor.detach()[~mask])


def test_tensors_of_more_than_a_block_are_masked_to_the_end() -> None:
    tensor, mask = torch.ones(2 * BLOCK + 3), torch.rand(2 * BLOCK + 3) < 0.5
    MaskApplier(mask)(tensor)
    assert torch.equal(tensor, mask.float())


def test_a_strided_view_is_masked_and_its_neighbours_are_not() -> None:
    whole = torch.ones(4, 6)
    MaskApplier(torch.zeros(4, 3, dtype=torch.bool))(whole[:, ::2])
    assert torch.equal(whole, torch.tensor([0.0, 1.0]).repeat(4, 3))


def test_names_match_with_and_without_wrappers() -> None:
    assert plain_name("module.weight") == "weight"
    assert plain_name("module") == "module"
    model = network()
    masks = random_masks(model)
    wrapped = nn.Module()
    wrapped.module = nn.Module()
    wrapped.module._orig_mod = model
    assert list(match(masks.tensors, wrapped)) == [f"module._orig_mod.{name}" for name in masks.tensors]
    from_wrapped = {f"_orig_mod.module.{name}": mask for name, mask in masks.tensors.items()}
    assert list(match(from_wrapped, model)) == list(masks.tensors)


def test_an_exact_name_comes_before_an_unwrapped_one() -> None:
    model = nn.Linear(2, 2)
    model.module = nn.Linear(2, 2)
    model.module._orig_mod = nn.Linear(2, 2)
    mask = torch.ones(2, 2, dtype=torch.bool)
    assert list(match({"module.weight": mask}, model)) == ["module.weight"]
    with pytest.raises(MaskError, match=r"could be weight or module.weight or module._orig_mod.weight"):
        match({"_orig_mod.weight": mask}, model)


def test_every_misfit_is_listed_and_nothing_is_changed() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LazyLinear(4))
    before = model[0].weight.clone()
    masks = Masks(
        {
            "0.weight": torch.zeros(3, 2, dtype=torch.bool),
            "0.bias": torch.zeros(4, dtype=torch.bool),
            "1.weight": torch.zeros(4, 3, dtype=torch.bool),
            "2.weight": torch.zeros(4, 3, dtype=torch.bool),
        }
    )
    with pytest.raises(MaskError) as error:
        masks.apply(model)
    for problem in (
        "'0.bias' has a mask of [4] for a weight of [3]",
        "'1.weight' has no shape yet",
        "no parameter '2.weight'",
    ):
        assert problem in str(error.value)
    assert torch.equal(model[0].weight, before)


def test_tied_weights_are_one_weight_under_either_name() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(7, 3), "head": nn.Linear(3, 7, bias=False)})
    model["head"].weight = model["embedding"].weight
    mask = torch.rand(7, 3) < 0.5
    for names in (["embedding.weight"], ["head.weight"], ["head.weight", "embedding.weight"]):
        assert len(match(dict.fromkeys(names, mask), model)) == 1
    assert list(Masks.from_zeros(model).tensors) == ["embedding.weight"]
    with pytest.raises(MaskError, match="one weight with two different masks"):
        match({"embedding.weight": mask, "head.weight": ~mask}, model)


def test_the_overlap_of_a_network_sums_the_counts_of_its_masks() -> None:
    first, second = MaskOverlap(1, 2, 3, 4), MaskOverlap(5, 6, 7, 8)
    assert total_overlap([first, second]) == MaskOverlap(6, 8, 10, 12)
    assert total_overlap([]).overlap == 1.0
