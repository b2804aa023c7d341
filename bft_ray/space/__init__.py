"""A search space: which fields of a config a study varies, which settings are equal, what they cost. Needs neither torch nor Ray."""
