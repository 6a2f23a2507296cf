import pytest

from prunekit.runs import first_rank
from prunekit.runs.first_rank import on_first_rank


@pytest.mark.parametrize(("rank", "calls"), [(0, [("a", "b")]), (1, [])])
def test_only_the_first_rank_calls_the_function(monkeypatch, rank, calls):
    monkeypatch.setattr(first_rank, "own_rank", lambda: rank)
    seen = []

    @on_first_rank
    def write(path, *, text):
        seen.append((path, text))

    write("a", text="b")
    assert seen == calls
