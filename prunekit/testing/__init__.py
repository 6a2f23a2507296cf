"""The kit for authors of plugins: a toy task, checks of plugins, and the scores of criteria.

It must not know runs or deployment.
"""

from prunekit.testing.criterion_check import check_criterion
from prunekit.testing.export_format_check import check_export_format
from prunekit.testing.listener_check import check_listener
from prunekit.testing.schedule_check import check_schedule
from prunekit.testing.scores import scores_of
from prunekit.testing.task_check import check_task
from prunekit.testing.toy_task import ToyNetwork, ToyTask

__all__ = [
    "ToyNetwork",
    "ToyTask",
    "check_criterion",
    "check_export_format",
    "check_listener",
    "check_schedule",
    "check_task",
    "scores_of",
]
