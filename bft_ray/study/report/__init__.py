"""What people see of a study: its note, tables and pictures, live lines, and MLflow."""
