"""Rows -> tokens -> a deterministic plan of global batches -> packed micro-batches."""
