"""The built-in schedules, one file each.

A schedule must not know criteria or training.
"""
