"""Measure a pruned network for ``prunekit bench``: weights, multiply-adds, bytes and latency in every form.

``running.bench`` measures and returns ``records``. This package must not know the command line.
"""
