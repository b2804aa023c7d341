"""How sure figures are: errors, paired differences, simultaneous comparisons, linearised metrics, power."""
