"""What the package brings to prunekit, as hooks."""

from collections.abc import Iterable

from prunekit.markers import hookimpl
from prunekit.tasks import Task
from prunekit_images.task import ImageClassification


@hookimpl
def prunekit_tasks() -> Iterable[type[Task]]:
    """Bring the task "images"."""
    return [ImageClassification]
