"""Balanced Fine-Tuning (BFT, arXiv 2511.21075) of language models on biomedical data, on Ray."""

from typing import Any

__version__ = "0.1.0"

#: functions of `bft_ray.notebook`, which is loaded by the first use of one: `import bft_ray` alone loads nothing
_NOTEBOOK = ("figures_of", "list_studies", "profile_of", "records_of", "report_of")
__all__ = ["__version__", *_NOTEBOOK]


def __getattr__(name: str) -> Any:
    if name not in _NOTEBOOK:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("bft_ray.notebook"), name)
