"""The built-in criteria, one file each.

A criterion must not know other criteria, schedules or runs.
"""
