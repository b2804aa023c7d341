"""A search space: which fields of a config a study varies, which trials are duplicates, what they cost. Needs neither torch nor Ray."""
