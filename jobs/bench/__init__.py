"""Benchmarks: ratios against a named peer in one run; each prints a table and writes its figures."""
