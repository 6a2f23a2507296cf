"""The built-in listeners: the progress display and the metric log.

They must not know how a run works inside.
"""
