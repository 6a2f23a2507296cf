"""Thin adapters, one for each foreign trainer. Nothing else of prunekit imports them: each needs its package."""
