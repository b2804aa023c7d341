"""The choice: candidates against baselines on fresh data and seeds, as functions of the records."""
