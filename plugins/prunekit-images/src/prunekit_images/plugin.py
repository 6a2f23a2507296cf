"""What the package brings to prunekit, as hooks."""

from collections.abc import Iterable

from prunekit.contracts.markers import hookimpl
from prunekit.contracts.task import Task
from prunekit_images.task import ImageClassification


@hookimpl
def prunekit_tasks() -> Iterable[type[Task]]:
    """Bring the task "images"."""
    return [ImageClassification]
