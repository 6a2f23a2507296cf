"""A sweep: many runs of one grid over several seeds, with shared stages, parallel workers, and tables with intervals.

It must not know the command line.
"""
