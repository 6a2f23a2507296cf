"""Tests of the listener: the contract by the kit."""

from curve import Curve

from prunekit.testing import check_listener


def test_it_keeps_its_contract() -> None:
    """It accepts the events of whole, resumed and stopped runs."""
    check_listener(Curve)
