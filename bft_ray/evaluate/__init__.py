"""What a model can do: likelihood of held-out text, and multiple choice. Further evaluators stand beside
these.
"""
