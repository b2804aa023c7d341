"""Which settings are tried next, which trials stop, and which are duplicates."""
