"""What the package brings to prunekit, as hooks."""

from collections.abc import Iterable

from torch import nn

from prunekit.contracts.markers import hookimpl
from prunekit.contracts.task import Task
from prunekit.layers.view import LayerView
from prunekit_deepid2plus.local import LocallyConnected2d, LocalView
from prunekit_deepid2plus.task import DeepID2Plus


@hookimpl
def prunekit_tasks() -> Iterable[type[Task]]:
    """Bring the task "deepid2plus"."""
    return [DeepID2Plus]


@hookimpl
def prunekit_layer_views(module: nn.Module) -> LayerView | None:
    """Bring the view of locally connected layers."""
    return LocalView(module) if isinstance(module, LocallyConnected2d) else None
