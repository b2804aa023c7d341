"""A study: trials, their confirmation on fresh data and seeds, and the choice, which is a function of the records."""
