"""Attention pruning by sensitivity (SPAT), for models of one's own and as a benchmark.

`find_sites`, `score`, `prune`, `compare`, `save` and `load` work with any model, `Forecast` with a
saved forecaster. `advise` trains forecasters on a file of one's own and says whether attention can
go; it needs the packages of the pipeline. All are imported at their first use, so that
`import spat` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from spat.attention.discovery import find_sites
    from spat.pipeline.advise import advise
    from spat.scoring.foreign import score
    from spat.surgery.forecast import Forecast
    from spat.surgery.foreign import compare, load, prune, save

__version__ = "0.1.0"

__all__ = ["Forecast", "advise", "compare", "find_sites", "load", "prune", "save", "score"]

_HOMES: Final = {
    "Forecast": "spat.surgery.forecast",
    "advise": "spat.pipeline.advise",
    "find_sites": "spat.attention.discovery",
    "score": "spat.scoring.foreign",
    **dict.fromkeys(("compare", "load", "prune", "save"), "spat.surgery.foreign"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if not _HOMES[name].startswith("spat.pipeline"):
            raise
        from spat.pipeline.failures import PIPELINE_PACKAGES

        raise ImportError(f"spat.{name}: no {error.name!r}: {PIPELINE_PACKAGES}") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
