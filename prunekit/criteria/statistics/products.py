"""Accumulate products over samples, in float32 only over runs short enough for rounding to stay negligible.

A sum of K products of one sign in single precision has an error of about sqrt(K) / 3 roundings; N samples in runs of K,
added up in double precision, have one of K / (3 sqrt(N)). Runs may therefore grow with the square root of the number of
samples. This module must not know correlations.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, reduce

import torch
from torch import Tensor

from prunekit.distributed.torch_internals import has_onednn_product, onednn_product

# The longest run summed in single precision at once; the libraries split longer ones at 128 to 192 or more.
_LONGEST_RUN = 128
# Runs added to each other in single precision before double precision takes over.
_RUNS = 4
# Products with fewer entries, or fewer rows or columns, than this are computed in double precision: the libraries sum
# them in one long chain.
_SMALL = 256
_THIN = 4
# Entries of a product from which oneDNN is faster: each call to it costs about 12 microseconds.
_LARGE = 2**15
# Bytes of double precision added at once.
_CACHED_BYTES = 2**19
# Runs of single precision have at most sqrt(this * samples before) samples, or sqrt(samples with this block).
_GROWTH = 4


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Disable TF32 and autocast, which would leave a correlation only 8 to 11 bits."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def runs(before: int, samples: int, dtype: torch.dtype) -> list[slice]:
    """Split the samples of a block into runs; double precision needs only one.

    Args:
        before: number of samples summed before this block.
        samples: number of samples in the block.
        dtype: dtype of the products.
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
        left: ``[parts, rows, samples of the run]`` for each run.
        right: ``[parts, samples, columns]``, of the same dtype as ``left``.
        cut: the runs, from ``runs``.
        scratch: one-dimensional, of the dtype of ``left``, as large as ``total``; reused because allocation takes time.
    """
    if total[0].numel() < _SMALL or min(total.shape[1:]) < _THIN:
        total.baddbmm_(torch.cat(list(left), 2).double(), right.double())
    elif total[0].numel() >= _LARGE and right.dtype == torch.float32 and right.device.type == "cpu" and _has_onednn():
        _add_large(total, left, right.contiguous(), cut)
    else:
        _add_batched(total, left, right, cut, scratch)


@cache
def _has_onednn() -> bool:
    """Return whether oneDNN can use AVX-512; torch's default, MKL, uses only AVX2 on processors not made by Intel."""
    return has_onednn_product() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _add_large(total: Tensor, left: Sequence[Tensor], right: Tensor, cut: list[slice]) -> None:
    for part, sums in enumerate(total):
        for start in range(0, len(cut), _RUNS):
            group = zip(left[start : start + _RUNS], cut[start : start + _RUNS], strict=True)
            found = (onednn_product(rows[part], right[part, run]) for rows, run in group)
            sums.add_(reduce(Tensor.add_, found))


def _add_batched(total: Tensor, left: Sequence[Tensor], right: Tensor, cut: list[slice], scratch: Tensor) -> None:
    products = scratch[: total.numel()].view(total.shape)
    for start in range(0, len(cut), _RUNS):
        first, *others = zip(left[start : start + _RUNS], cut[start : start + _RUNS], strict=True)
        torch.bmm(first[0], right[:, first[1]], out=products)
        for rows, run in others:
            products.baddbmm_(rows, right[:, run])
        # Adding converts to double precision first, in small pieces that stay in the cache.
        height = max(1, _CACHED_BYTES // (8 * products[:, 0].numel()))
        for sums, part in zip(torch.split(total, height, 1), torch.split(products, height, 1), strict=True):
            sums.add_(part)


def taken(values: Tensor, places: Tensor) -> Tensor:
    """Return ``values[places]``, without a copy if the places (on the CPU) are consecutive."""
    first, count = int(places[0]), len(places)
    if count == 1 or bool((places.diff() == 1).all()):
        return values[first : first + count]
    return values[places.to(values.device)]
