"""Checkpoints of a run: one file, or a folder of shards.

They must not know the order in which things happen.
"""
