"""Where the channels of a network flow, and which of them are kept or removed together.

It must not know which channels are removed, or why.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "groups": ["ChannelGroup", "ChannelGroups"],
        "finding": ["CoupledUnits", "find_channel_groups", "find_coupled_units"],
    },
)
