"""prunekit: prune neural networks with criteria and schedules that are plugins."""
