"""Checks of a study before a worker starts: what is wrong with it, and what it will cost."""
