"""Adapters that hold masks inside other trainers, one file each.

An adapter must not know more than masks and pruning. Nothing else imports adapters: each needs its trainer installed.
"""
