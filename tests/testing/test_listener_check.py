import types
from pathlib import Path

import pytest
from rich.console import Console

from prunekit.contracts.markers import hookimpl
from prunekit.reporting.metric_log import MetricLog
from prunekit.reporting.progress import LiveProgress, PlainProgress, make_plugin
from prunekit.testing import ToyTask, check_listener


class Counting:
    """Counts the events of each run by kind, and has one more instance for each run."""

    instances: list["Counting"]

    def __init__(self):
        self.counts = {}
        type(self).instances.append(self)

    def _count(self, event):
        kind = type(event).__name__
        self.counts[kind] = self.counts.get(kind, 0) + 1

    @hookimpl
    def prunekit_run_started(self, event):
        assert Path(event.folder).is_dir()
        self._count(event)

    @hookimpl
    def prunekit_stage_finished(self, event):
        assert event.weights_left <= 1
        assert event.evaluation.value == 0.9
        self._count(event)

    @hookimpl
    def prunekit_run_finished(self, event):
        self._count(event)

    @hookimpl
    def prunekit_run_stopped(self, event):
        self._count(event)


def test_a_listener_gets_whole_resumed_and_stopped_runs_each_with_a_fresh_plugin():
    Counting.instances = []
    check_listener(Counting)
    assert [listener.counts for listener in Counting.instances] == [
        {"RunStarted": 1, "StageFinished": 2, "RunFinished": 1},
        {"RunStarted": 1, "StageFinished": 1, "RunFinished": 1},
        {"RunStarted": 1, "StageFinished": 1, "RunFinished": 1},
        {"RunStarted": 1, "RunFinished": 1},
        {"RunStarted": 1, "StageFinished": 1, "RunStopped": 1},
        {"RunStopped": 1},
    ]


def test_an_object_gets_the_events_of_all_runs():
    Counting.instances = []
    listener = Counting()
    check_listener(listener)
    assert listener.counts == {"RunStarted": 5, "StageFinished": 5, "RunFinished": 4, "RunStopped": 2}


def test_a_module_can_be_a_listener():
    module = types.ModuleType("shouting")
    exec(  # noqa: S102 - our own text
        "from prunekit import hookimpl\n@hookimpl\ndef prunekit_masks_updated(event):\n    assert event.layers",
        vars(module),
    )
    check_listener(module)


@pytest.mark.parametrize(
    "listener", [MetricLog, make_plugin, PlainProgress(Console(quiet=True)), LiveProgress(Console(quiet=True))]
)
def test_the_built_in_listeners_pass(listener):
    check_listener(listener)


class Silent:
    @hookimpl
    def prunekit_tasks(self):
        return [ToyTask]


class Misspelt:
    @hookimpl
    def prunekit_stage_finnished(self, event):
        pass


class Unmarked:
    def prunekit_stage_finished(self, event):
        pass


class Curious:
    @hookimpl
    def prunekit_stage_finished(self, event, loss):
        pass


class Percent:
    @hookimpl
    def prunekit_stage_finished(self, event):
        raise KeyError("accuracy in percent")


class Continuous:
    """Relies on a stage before the second one."""

    @hookimpl
    def prunekit_stage_started(self, event):
        if event.index == 0:
            self.last = event.name
        else:
            self.last += event.name

    @hookimpl
    def prunekit_masks_updated(self, event):
        pass


class Hasty:
    """Relies on a start before the stop."""

    @hookimpl
    def prunekit_run_started(self, event):
        self.file = event.folder / "hasty.txt"

    @hookimpl
    def prunekit_run_stopped(self, event):
        self.file.write_text(event.reason)


class Tidying:
    @hookimpl
    def prunekit_stage_finished(self, event):
        event.kept.clear()


class Demanding:
    def __init__(self, token):
        self.token = token


@pytest.mark.parametrize(
    ("listener", "sentence"),
    [
        (Silent, "Silent implements no notification hook; a listener implements at least one of prunekit_epoch"),
        (Misspelt, "unknown hook 'prunekit_stage_finnished'"),
        (Unmarked, "defines prunekit_stage_finished without @prunekit.hookimpl"),
        (Curious, "does not fit its hook"),
        (Percent, "Percent.prunekit_stage_finished failed in a whole run: KeyError: 'accuracy in percent'"),
        (Continuous, "Continuous.prunekit_stage_started failed in a run resumed within a stage: AttributeError"),
        (Hasty, "Hasty.prunekit_run_stopped failed in a run that stops before it starts: AttributeError"),
        (Tidying, "Tidying.prunekit_stage_finished changes its event in a whole run; copy what you change"),
        (Demanding, "Demanding cannot be made: TypeError"),
    ],
)
def test_a_listener_that_would_fail_in_a_run_fails_the_check(listener, sentence):
    with pytest.raises(AssertionError) as caught:
        check_listener(listener)
    assert sentence in str(caught.value)
