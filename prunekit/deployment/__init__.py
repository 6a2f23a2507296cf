"""A pruned network after training: shrinking, sparse kernels, export and measurement.

It must not know how the network was trained; only opening a run folder and ``bench`` may import ``runs``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "pruned_network": ["open_pruned"],
        "shrinking": ["load_shrunk", "save_shrunk", "shrink"],
        "sparse": ["load_csr", "run_sparse", "save_csr"],
        "sparse.semi_structured": ["load_semi_structured"],
    },
)
