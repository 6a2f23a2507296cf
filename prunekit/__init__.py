"""prunekit: prune neural networks with criteria and schedules that are plugins.

The public names are imported when first used, so that ``import prunekit`` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.criteria import Criterion as Criterion
    from prunekit.criteria import NetworkCriterion as NetworkCriterion
    from prunekit.criteria import Observation as Observation
    from prunekit.criteria import Scene as Scene
    from prunekit.errors import CheckpointError as CheckpointError
    from prunekit.errors import ConfigError as ConfigError
    from prunekit.errors import DataError as DataError
    from prunekit.errors import ExportError as ExportError
    from prunekit.errors import MaskError as MaskError
    from prunekit.errors import PluginError as PluginError
    from prunekit.errors import PrunekitError as PrunekitError
    from prunekit.errors import TrainingError as TrainingError
    from prunekit.layers import LayerShape as LayerShape
    from prunekit.layers import LayerView as LayerView
    from prunekit.markers import hookimpl as hookimpl
    from prunekit.masks import Masks as Masks
    from prunekit.masks import load_masks as load_masks
    from prunekit.options import option as option
    from prunekit.own_loop import select as select
    from prunekit.pruned import open_pruned as open_pruned
    from prunekit.schedules import Budget as Budget
    from prunekit.schedules import Grow as Grow
    from prunekit.schedules import MaskUpdate as MaskUpdate
    from prunekit.schedules import Plan as Plan
    from prunekit.schedules import PlanRequest as PlanRequest
    from prunekit.schedules import Schedule as Schedule
    from prunekit.schedules import Stage as Stage
    from prunekit.schedules import Start as Start
    from prunekit.seeds import Seeds as Seeds
    from prunekit.selection import Blocks as Blocks
    from prunekit.selection import Channels as Channels
    from prunekit.selection import NofM as NofM
    from prunekit.selection import Quota as Quota
    from prunekit.selection import Units as Units
    from prunekit.semi_structured import load_semi_structured as load_semi_structured
    from prunekit.shrinking import load_shrunk as load_shrunk
    from prunekit.shrinking import save_shrunk as save_shrunk
    from prunekit.shrinking.shrink import shrink as shrink
    from prunekit.sparse import load_csr as load_csr
    from prunekit.sparse import run_sparse as run_sparse
    from prunekit.sparse import save_csr as save_csr
    from prunekit.sparse_checkpoints import load_weights as load_weights
    from prunekit.sparse_checkpoints import save_sparse as save_sparse
    from prunekit.tasks import Evaluation as Evaluation
    from prunekit.tasks import Task as Task
    from prunekit.tasks import Training as Training

_MODULES = {
    "criteria": ("Criterion", "NetworkCriterion", "Observation", "Scene"),
    "errors": (
        "CheckpointError",
        "ConfigError",
        "DataError",
        "ExportError",
        "MaskError",
        "PluginError",
        "PrunekitError",
        "TrainingError",
    ),
    "layers": ("LayerShape", "LayerView"),
    "markers": ("hookimpl",),
    "masks": ("Masks", "load_masks"),
    "options": ("option",),
    "own_loop": ("select",),
    "pruned": ("open_pruned",),
    "schedules": ("Budget", "Grow", "MaskUpdate", "Plan", "PlanRequest", "Schedule", "Stage", "Start"),
    "seeds": ("Seeds",),
    "selection": ("Blocks", "Channels", "NofM", "Quota", "Units"),
    "semi_structured": ("load_semi_structured",),
    "shrinking": ("load_shrunk", "save_shrunk", "shrink"),
    "sparse": ("load_csr", "run_sparse", "save_csr"),
    "sparse_checkpoints": ("load_weights", "save_sparse"),
    "tasks": ("Evaluation", "Task", "Training"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("prunekit")
    if name not in _HOME:
        raise AttributeError(f"module 'prunekit' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"prunekit.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, "__version__"})
