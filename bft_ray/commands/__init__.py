"""Each command is a file of its name: its options (`add`), and what it does with them (`run`)."""
