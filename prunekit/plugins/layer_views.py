"""The views of the core's own layer types, asked last so that a plugin may see a module differently."""

from torch import nn

from prunekit.contracts.markers import hookimpl
from prunekit.layers.torch_views import core_view
from prunekit.layers.view import LayerView


@hookimpl(trylast=True)
def prunekit_layer_views(module: nn.Module) -> LayerView | tuple[LayerView, ...] | None:
    """View linear layers, convolutions and attention."""
    return core_view(module)
