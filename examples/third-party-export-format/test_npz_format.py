"""Tests of the format: the contract by the kit."""

from npz_format import prunekit_export_formats

from prunekit.testing import check_export_format


def test_it_keeps_its_contract() -> None:
    """The file is the same each time, and gives the outputs of the masked network."""
    for export_format in prunekit_export_formats():
        check_export_format(export_format)
