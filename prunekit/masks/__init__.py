"""Masks: patterns, exact selection from scores, applying, holding, files of masks and of sparse weights.

It must not know layers, criteria or runs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "masks": ["Masks", "load_masks"],
        "patterns": ["Blocks", "Channels", "NofM", "Units"],
        "selection": ["Quota", "keep_best"],
        "weight_files": ["load_weights", "save_sparse"],
    },
)
