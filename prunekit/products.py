"""Sums of products over samples: batched, in single precision over runs so short that its rounding does not show.

A sum of K products of one sign, made in single precision, is wrong by about sqrt(K) / 3 roundings; of N samples in
runs of K, added up more exactly, by K / (3 sqrt(N)). So runs may grow with the square root of the samples seen.
This module must not know correlations.
"""

from collections.abc import Iterator
from contextlib import contextmanager

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
# Bytes of double precision that are added at once.
_CACHED_BYTES = 2**19
# Runs of single precision have at most sqrt(this * samples before) samples.
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
    found, start = [], 0
    while start < samples:
        # A power of two, so that runs fill the registers of a product.
        length = min(1 << ((_GROWTH * (before + start)).bit_length() - 1) // 2, _LONGEST_RUN)
        found.append(slice(start, min(start + length, samples)))
        start += length
    return found


def add_products(total: Tensor, left: Tensor, right: Tensor, cut: list[slice], scratch: Tensor) -> None:
    """Add ``left @ right`` to ``total``, run by run.

    Args:
        total: float64 ``[parts, rows, columns]``.
        left: ``[parts, rows, samples]``.
        right: ``[parts, samples, columns]`` of the same dtype.
        cut: the runs, from ``runs``.
        scratch: one-dimensional, of that dtype, as large as ``total``: new memory costs time.
    """
    if total[0].numel() < _SMALL or min(total.shape[1:]) < _THIN:
        total.baddbmm_(left.double(), right.double())
        return
    products = scratch[: total.numel()].view(total.shape)
    for start in range(0, len(cut), _RUNS):
        first, *others = cut[start : start + _RUNS]
        torch.bmm(left[:, :, first], right[:, first], out=products)
        for run in others:
            products.baddbmm_(left[:, :, run], right[:, run])
        # Adding converts to double precision first: little by little, so that it stays in the cache.
        rows = max(1, _CACHED_BYTES // (8 * products[:, 0].numel()))
        for sums, part in zip(torch.split(total, rows, 1), torch.split(products, rows, 1), strict=True):
            sums.add_(part)


def taken(values: Tensor, places: Tensor) -> Tensor:
    """Return ``values[places]``, without a copy where the places (on the CPU) follow one another."""
    first, count = int(places[0]), len(places)
    if count == 1 or bool((places.diff() == 1).all()):
        return values[first : first + count]
    return values[places.to(values.device)]
