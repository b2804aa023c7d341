"""Ray workers: where they find room, and a pool of them for a function over shards."""
