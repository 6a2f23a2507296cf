import pytest

from prunekit.errors import ConfigError
from prunekit.masks.patterns import Blocks, Channels, NofM, Units, parse_pattern, pattern_problem, requested_count


@pytest.mark.parametrize("pattern", [NofM(2, 4), NofM(1, 1), Blocks(4, 1), Blocks(1, 16), Units(), Channels()])
def test_a_pattern_is_parsed_from_its_text(pattern):
    assert parse_pattern(str(pattern)) == pattern
    assert parse_pattern(f" {pattern} ") == pattern


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2-4", "'2-4' is not understood, expected for example '2:4', '4x1', 'units' or 'channels'"),
        ("", "is not understood"),
        ("2:4:8", "is not understood"),
        ("4:2", "keeps 4 of 2, expected at most 2"),
        ("0:4", "has a size of 0"),
        ("4x0", "has a size of 0"),
    ],
)
def test_an_unknown_pattern_is_an_error(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_pattern(text)


def test_counts_are_multiples_of_units_and_blocks():
    assert requested_count(0.3, 10 * 7, Units(), 7) == requested_count(0.3, 10 * 7, Channels(), 7) == 21
    assert requested_count(0.24, 100, Blocks(2, 5), 20) == 20
    assert requested_count(0.24, 100, NofM(1, 4), 20) == requested_count(0.24, 100) == 24


def test_whole_units_fit_every_layer():
    assert pattern_problem(Units(), 0.37, 13, (3, 3, 3)) == ""
    assert "2:4 does not divide 3 input channels" in pattern_problem(NofM(2, 4), 0.5, 8, (3, 3, 3))
