"""The modules of a network that a trace can follow as a whole: layers and channel followers.

This module must not know how a network is run.
"""

from collections.abc import Iterator, Mapping

import attrs
from torch import nn

from prunekit.distributed.torch_internals import has_forward_hooks, parameter_slots
from prunekit.layers.follower import ChannelFollower
from prunekit.layers.view import LayerView, ViewOf


@attrs.frozen(eq=False)
class TracedModules:
    """The modules of a network that are each followed as one unit.

    Attributes:
        layers: module -> (name, view) of each layer that can be resized.
        followers: module -> (name, follower) of each channel follower.
        owners: id of each parameter and buffer -> names of the modules that hold it.
    """

    layers: Mapping[nn.Module, tuple[str, LayerView]]
    followers: Mapping[nn.Module, tuple[str, ChannelFollower]]
    owners: Mapping[int, list[str]]

    @classmethod
    def of(cls, network: nn.Module, view_of: ViewOf) -> "TracedModules":
        """Find the modules of a network that can be followed."""
        layers: dict[nn.Module, tuple[str, LayerView]] = {}
        followers: dict[nn.Module, tuple[str, ChannelFollower]] = {}
        owners: dict[int, list[str]] = {}
        for name, module in network.named_modules():
            view = view_of(module)
            if isinstance(view, LayerView) and view.channel_axis is not None:
                layers[module] = (name, view)
            elif isinstance(view, ChannelFollower):
                followers[module] = (name, view)
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                owners.setdefault(id(tensor), []).append(name)
        return cls(layers, followers, owners)

    def names(self) -> Iterator[tuple[nn.Module, str]]:
        """Yield (module, name) of each layer and follower."""
        for module, (name, _) in (*self.layers.items(), *self.followers.items()):
            yield module, name

    def fixed(self) -> dict[str, str]:
        """Return the modules that must not be resized, because their weights have other uses: name -> reason."""
        reasons = ((name, self._reason(module)) for module, name in self.names())
        return {name: reason for name, reason in reasons if reason is not None}

    def _reason(self, module: nn.Module) -> str | None:
        if not self._is_plain(module):
            return "its weights are parametrized, or differ from those of its type"
        if has_forward_hooks(module):
            return "it has hooks"
        if any(len(self.owners[id(tensor)]) > 1 for tensor in module.parameters(recurse=False)):
            return "it shares a weight with another module"
        return None

    def _is_plain(self, module: nn.Module) -> bool:
        """Say whether a module has exactly the parameters that its view or follower knows, none of them computed."""
        own = parameter_slots(module).keys()
        if module in self.layers:
            known = {self.layers[module][1].parameter, "bias"}
            return own | {"bias"} == known and ("bias" in own or module.bias is None)
        _, follower = self.followers[module]
        stored = own | dict(module.named_buffers(recurse=False)).keys()
        present = {name for name in follower.per_channel if getattr(module, name) is not None}
        return own <= set(follower.per_channel) and present <= stored
