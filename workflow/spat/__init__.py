"""Attention pruning by sensitivity (SPAT): a library for any PyTorch model, and a benchmark.

There are three uses. The names below are imported at their first use, so that `import spat` does
not import torch.

## My model

`find_sites`, `score`, `prune`, `compare`, `save` and `load` work with any PyTorch model. They take
a loss function that returns one value for each sample of a batch, and find softmax attention in the
autograd graph of that loss. A *site* is an attention module that can be removed as a whole:

```python
loss = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none")
print(spat.find_sites(model, loss, batch))  # a table: what can be removed, and the reasons
scores = spat.score(model, loader, loss, criterion="send")  # prints as a table
small = spat.prune(model, scores.lowest(0.5), loss, batch)  # a verified copy
train(small)  # your own training loop
print(spat.compare(model, small, inputs))  # parameters, FLOPs, latency, memory
spat.save(small, "small.safetensors")
small = spat.load(build_model(), "small.safetensors")
```

There are limits. Single heads of such models cannot be removed. Attention is found if it has the
form softmax(q kᵀ) v, where k and v are computed from the input and q may be a parameter. The
softmax may be written by hand, and A, the weights that multiply v, may be computed from it: talking
heads (a linear map over the heads), a difference of two maps, weights that are normalised again.
The following are not found: sigmoid and linear attention, keys that are parameters, scores of a
module of their own instead of q kᵀ, kernels and functions with a backward pass of their own. If
nothing is found, `NoSites` lists each softmax with the reason. For these, pass the names of the
modules as `units=` and rank them by `criterion="loss_drop"`; criteria that need attention maps,
such as `send`, cannot rank them. Attention without a residual connection cannot be removed
(`spat.attention.errors.NoResidual`). A compiled model is read as it was written. Give the original
module of a scripted model, score a model before it is quantised, and call it on a whole batch, not
inside `torch.vmap`. All errors of the library are subclasses of `AttentionError`, except for
arguments of a wrong type or value. The criteria are in `spat.scoring.names`.

## My data

`advise` trains forecasters on a file, with and without their attention, and reports whether
attention can be removed and what is saved. The command is `python -m spat advise my.csv --horizon
96`. It needs the packages of the pipeline (`pip install ".[pipeline]"`). `Forecast` loads a network
that `advise` or the pipeline saved, and forecasts the continuation of a data frame:

```python
print(spat.advise("my.csv", 96))
forecast = spat.Forecast.from_folder("advice/my/recommended")
forecast.predict(frame)  # the next 96 rows, in the units of the frame
```

## The paper

`make run` runs the benchmark, from the published data to tables and figures (see the README).
`spat.pipeline.config` describes the configuration, `spat.pipeline.frames` the columns of the
results, `spat.attention.mask` the names of masks. The parts can also be used separately: data
(`spat.data.series`, `spat.data.windows`), models (`spat.models.registry`), training
(`spat.training.loop`), scores (`spat.scoring.scores`) and surgery (`spat.surgery.cut`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from spat.attention.discovery import find_sites
    from spat.attention.errors import AttentionError, AttentionWarning
    from spat.pipeline.advise import advise
    from spat.scoring.foreign import score
    from spat.surgery.forecast import Forecast
    from spat.surgery.foreign import compare, load, prune, save

__version__ = "0.1.0"

__all__ = [
    "AttentionError",
    "AttentionWarning",
    "Forecast",
    "advise",
    "compare",
    "find_sites",
    "load",
    "prune",
    "save",
    "score",
]

_HOMES: Final = {
    **dict.fromkeys(("AttentionError", "AttentionWarning"), "spat.attention.errors"),
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
