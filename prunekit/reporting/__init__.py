"""The built-in listeners: progress display and metric log.

They must not know how a run works inside.
"""
