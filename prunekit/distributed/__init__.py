"""Distributed training: launcher, devices, ranks and reductions, DTensor, DDP, FSDP2, batch shares, torch internals.

It must not know layers, masks or tasks.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "ranks": ["own_rank", "rank_count", "sum_over_ranks"],
        "batch_shares": ["BatchShare", "map_tensors", "split_batch"],
    },
)
