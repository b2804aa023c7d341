"""What a run needs of a machine, from the model's config alone."""
