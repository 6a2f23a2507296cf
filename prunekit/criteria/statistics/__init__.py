"""Exact streaming moments, products and correlations of activations.

It must not know criteria.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "correlation_sums": ["CorrelationSums"],
    },
)
