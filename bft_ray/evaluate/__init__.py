"""What a model can do: the evaluators, the three verbs that they ask of a model, and what runs them."""
