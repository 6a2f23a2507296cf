"""Checkpoints of a run: one file, or a folder of shards.

They must not know stages or plans.
"""
