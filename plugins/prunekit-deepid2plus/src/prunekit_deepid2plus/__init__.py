"""The reference task of prunekit: DeepID2+ face verification, with locally connected layers."""
