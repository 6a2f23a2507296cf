"""What a pruned network costs and takes: ``prunekit bench``.

``running.bench`` measures, and gives ``records``. Knows pruned networks and the forms they can run in; must not know
the command line.
"""
