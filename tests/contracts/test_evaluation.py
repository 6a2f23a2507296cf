import pytest

from prunekit.contracts.evaluation import Evaluation


def test_value_is_the_figure_that_primary_names() -> None:
    evaluation = Evaluation("accuracy", {"loss": 0.3, "accuracy": 0.9})
    assert evaluation.value == 0.9


def test_value_of_a_metric_that_was_not_measured_names_the_metric() -> None:
    evaluation = Evaluation("acuracy", {"accuracy": 0.9})
    with pytest.raises(KeyError, match="acuracy"):
        _ = evaluation.value
