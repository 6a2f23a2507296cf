"""Sums of products over samples: batched, in single precision over runs so short that its rounding does not show.

A sum of K products of one sign, made in single precision, is wrong by about sqrt(K) / 3 roundings; of N samples in
runs of K, added up more exactly, by K / (3 sqrt(N)). So runs may grow with the square root of the samples.
This module must not know correlations.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, reduce

import torch
from torch import Tensor

# The longest run that is summed in single precision in one go; the libraries cut longer ones at 128 to 192 or more.
_LONGEST_RUN = 128
# Runs that are added to each other in single precision before double precision takes over.
_RUNS = 4
# Products of fewer numbers, or fewer rows or columns, than this are made in double precision: the libraries sum such
# ones in one long chain.
_SMALL = 256
_THIN = 4
# Entries of a product from which on oneDNN is faster: each call of it costs some 12 microseconds.
_LARGE = 2**15
# Bytes of double precision that are added at once.
_CACHED_BYTES = 2**19
# Runs of single precision have at most sqrt(this * samples before) samples, or sqrt(samples with this block).
_GROWTH = 4


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch off TF32 and autocast: their 8 to 11 bits would be all that is left of a correlation."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def runs(before: int, samples: int, dtype: torch.dtype) -> list[slice]:
    """Cut the samples of a block into runs; double precision needs only one.

    Args:
        before: samples that are summed up already.
        samples: of the block.
        dtype: of the products.
    """
    if dtype == torch.float64:
        return [slice(samples)]
    # A power of two, so that runs fill the registers of a product.
    square = max(_GROWTH * before, before + samples)
    length = min(1 << (square.bit_length() - 1) // 2, _LONGEST_RUN)
    return [slice(start, min(start + length, samples)) for start in range(0, samples, length)]


def add_products(total: Tensor, left: Sequence[Tensor], right: Tensor, cut: list[slice], scratch: Tensor) -> None:
    """Add the products of left and right to ``total``, run by run.

    Args:
        total: float64 ``[parts, rows, columns]``.
        left: of each run ``[parts, rows, samples of the run]``.
        right: ``[parts, samples, columns]`` of the same dtype.
        cut: the runs, from ``runs``.
        scratch: one-dimensional, of that dtype, as large as ``total``: new memory costs time.
    """
    if total[0].numel() < _SMALL or min(total.shape[1:]) < _THIN:
        total.baddbmm_(torch.cat(list(left), 2).double(), right.double())
    elif total[0].numel() >= _LARGE and right.dtype == torch.float32 and right.device.type == "cpu" and _has_onednn():
        _add_large(total, left, right.contiguous(), cut)
    else:
        _add_batched(total, left, right, cut, scratch)


@cache
def _has_onednn() -> bool:
    """Whether oneDNN multiplies with AVX-512; torch's own choice, MKL, keeps to AVX2 on processors not of Intel."""
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's stubs leave it untyped
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return built and wide and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _add_large(total: Tensor, left: Sequence[Tensor], right: Tensor, cut: list[slice]) -> None:
    # What compiled models call for linear layers: of all ways from torch to oneDNN the one that copies nothing. Neither
    # matrix may have gaps between its rows: that takes it a hundred times as long.
    multiply = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 - looked for in _has_onednn
    for part, sums in enumerate(total):
        for start in range(0, len(cut), _RUNS):
            group = zip(left[start : start + _RUNS], cut[start : start + _RUNS], strict=True)
            found = (multiply(rows[part], right[part, run].T, None, "none", [], "") for rows, run in group)
            sums.add_(reduce(Tensor.add_, found))


def _add_batched(total: Tensor, left: Sequence[Tensor], right: Tensor, cut: list[slice], scratch: Tensor) -> None:
    products = scratch[: total.numel()].view(total.shape)
    for start in range(0, len(cut), _RUNS):
        first, *others = zip(left[start : start + _RUNS], cut[start : start + _RUNS], strict=True)
        torch.bmm(first[0], right[:, first[1]], out=products)
        for rows, run in others:
            products.baddbmm_(rows, right[:, run])
        # Adding converts to double precision first: little by little, so that it stays in the cache.
        height = max(1, _CACHED_BYTES // (8 * products[:, 0].numel()))
        for sums, part in zip(torch.split(total, height, 1), torch.split(products, height, 1), strict=True):
            sums.add_(part)


def taken(values: Tensor, places: Tensor) -> Tensor:
    """Return ``values[places]``, without a copy where the places (on the CPU) follow one another."""
    first, count = int(places[0]), len(places)
    if count == 1 or bool((places.diff() == 1).all()):
        return values[first : first + count]
    return values[places.to(values.device)]
