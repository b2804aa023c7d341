"""`bft-ray init`: from a user's own rows to a study: a config, a search space, and the files of its splits."""
