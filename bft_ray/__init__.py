"""Balanced Fine-Tuning (BFT, arXiv 2511.21075) of language models on biomedical data, on Ray."""

__version__ = "0.1.0"
