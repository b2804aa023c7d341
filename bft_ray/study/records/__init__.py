"""What a study knows: its trials in a database, who may write there, and what each segment left."""
