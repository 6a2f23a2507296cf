"""The views of the modules of PyTorch, called last so that another plugin can replace them."""

from torch import nn

from prunekit.contracts.markers import hookimpl
from prunekit.layers.follower import ChannelFollower
from prunekit.layers.torch_views import core_view
from prunekit.layers.view import LayerView


@hookimpl(trylast=True)
def prunekit_layer_views(module: nn.Module) -> LayerView | tuple[LayerView, ...] | ChannelFollower | None:
    """Return the views of linear layers, convolutions and attention, and the follower of batch normalisation."""
    return core_view(module)
