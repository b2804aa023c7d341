"""The three verbs that tasks ask of a model (score, generate, embed), and the workers that answer them."""
