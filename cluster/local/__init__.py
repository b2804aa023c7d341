"""A whole cluster on this machine: Ray with a job server and workers, PostgreSQL and an MLflow server, on loopback."""
