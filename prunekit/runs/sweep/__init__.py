"""Many runs of one grid: cells, shared runs, workers, and tables with intervals.

It must not know the command line.
"""
