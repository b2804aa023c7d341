"""What can be wrong with a study, found before a worker starts; and what it will cost."""
