"""Models beside the one that is evaluated: a judge behind an endpoint, a text encoder."""
