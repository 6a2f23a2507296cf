"""Adapters that hold masks inside other trainers, one file for each trainer.

An adapter must not know anything but masks and pruning. No other module imports adapters: each needs its trainer
installed.
"""
