"""Which settings are tried next, which trials are stopped, and which trials are duplicates."""
