import attrs
import pytest

from prunekit.contracts.options import option


@attrs.frozen
class Thing:
    share: float = option(0.5, "a share", low=0, high=1)
    mode: str = option("a", "a choice", choices=("a", "b"))
    rate: float = option(0.1, "a rate without limits")
    size: int | None = option(None, "at least one, or unset", low=1)


def test_values_within_the_limits_are_accepted():
    assert Thing(0, "b", size=3) == Thing(share=0, mode="b", size=3)
    assert Thing().size is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"share": 2}, "share is 2, expected at least 0 and at most 1"),
        ({"share": float("nan")}, "share is nan"),
        ({"rate": float("inf")}, "rate is inf, expected a finite number"),
        ({"rate": float("nan")}, "rate is nan, expected a finite number"),
        ({"mode": "c"}, "mode is 'c', expected one of a, b"),
        ({"size": 0}, "size is 0, expected at least 1"),
    ],
)
def test_a_value_outside_the_limits_is_refused_with_the_limits(values, words):
    with pytest.raises(ValueError, match=words):
        Thing(**values)


def test_the_help_text_and_the_limits_are_in_the_metadata():
    metadata = attrs.fields(Thing).share.metadata
    assert (metadata["help"], metadata["low"], metadata["high"]) == ("a share", 0, 1)
