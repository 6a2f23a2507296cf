from datetime import timedelta

import pytest
from torch import distributed

from prunekit.distributed import failure as last_words
from prunekit.distributed.failure import all_ranks_fail_at, claim_report


def fail(places, exchanges):
    """Return what a rank finds that fails at its place, having exchanged tensors so often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(last_words, "_PATIENCE", 0.5)
        patch.setattr(last_words, "_exchanges", lambda: {"cpu": exchanges[distributed.get_rank()]})
        return all_ranks_fail_at(places[distributed.get_rank()])


def exchange():
    before = last_words._exchanges()
    distributed.barrier()
    return before != last_words._exchanges()


def test_ranks_fail_alike_at_one_place_after_as_many_exchanges(two_ranks):
    assert two_ranks.run(fail, ["a", "a"], [7, 7]) == [True, True]
    assert two_ranks.run(fail, ["b", "c"], [7, 7]) == [False, False]
    assert two_ranks.run(fail, ["d", "d"], [7, 8]) == [False, False]


def test_exchanges_are_counted(two_ranks):
    assert two_ranks.run(exchange) == [True, True]


def test_one_process_fails_alike():
    assert all_ranks_fail_at("anywhere")


def speak():
    return claim_report()


def test_one_rank_is_the_first_to_speak(two_ranks):
    assert sorted(two_ranks.run(speak)) == [False, True]
    assert two_ranks.run(speak) == [False, False]


def test_where_nobody_can_be_asked_one_speaks(monkeypatch):
    server = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store = distributed.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=5))
    monkeypatch.setattr(last_words, "_get_default_store", lambda: store)
    assert claim_report()
    assert not claim_report()
    del server
    assert claim_report()
