from datetime import timedelta

import pytest
from torch import distributed

from prunekit.distributed import failure
from prunekit.distributed.failure import all_ranks_fail_at, claim_report


def fail(places, exchanges):
    """Return whether a rank finds that all fail at its place, given the number of exchanges on each rank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failure, "_PATIENCE", 0.5)
        patch.setattr(failure, "exchange_counts", lambda: {"cpu": exchanges[distributed.get_rank()]})
        return all_ranks_fail_at(places[distributed.get_rank()])


def test_ranks_fail_together_at_one_place_after_equally_many_exchanges(two_ranks):
    assert two_ranks.run(fail, ["a", "a"], [7, 7]) == [True, True]
    assert two_ranks.run(fail, ["b", "c"], [7, 7]) == [False, False]
    assert two_ranks.run(fail, ["d", "d"], [7, 8]) == [False, False]


def test_a_single_process_is_all_ranks():
    assert all_ranks_fail_at("anywhere")


def test_only_one_rank_claims_the_report(two_ranks):
    assert sorted(two_ranks.run(claim_report)) == [False, True]
    assert two_ranks.run(claim_report) == [False, False]


def test_without_a_store_every_rank_may_report(monkeypatch):
    server = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store = distributed.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=5))
    monkeypatch.setattr(failure, "default_store", lambda: store)
    assert claim_report()
    assert not claim_report()
    del server
    assert claim_report()
