"""A command as a job of a cluster: uploaded, followed, ended with its exit code."""
