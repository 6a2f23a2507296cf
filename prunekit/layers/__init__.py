"""A network as prunable layers: views, look-up by name, densities over layers, and how to call the network.

It must not know criteria, plugins or training.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "view": ["LayerShape", "LayerView"],
        "follower": ["ChannelFollower"],
        "torch_views": ["ConvolutionView", "LinearView", "core_view"],
        "lookup": ["find_layers", "parameter_name"],
        "densities": ["allocate_density"],
        "samples": ["Samples"],
    },
)
