"""Ray workers: whether the cluster has room for them, and a pool of them for a function over shards."""
