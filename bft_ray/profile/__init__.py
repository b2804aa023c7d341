"""The window profile of a dataset: what windows, epsilons and caps would do to it, from one forward pass."""
