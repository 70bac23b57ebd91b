"""Small trained-looking models and windows for the tests of the scores."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pandas as pd
import torch
from small_models import LOSSES, PRETRAINED
from torch import Tensor

from spat.attention.views import Mixing, Trace
from spat.data.windows import Batch, Windows
from spat.models.base import Forecaster
from spat.models.layers.attention import AttentionCore
from spat.models.registry import FORECASTERS, Shape, build, setup
from spat.models.timellm import PrototypeCore
from spat.pipeline import scores_frame
from spat.scoring.probe import SiteMeans, observe, window_means
from spat.scoring.scores import score

torch.set_num_threads(1)  # arrays are so small that a second thread would be slower

LOOKBACK, HORIZON, CHANNELS = 24, 12, 3
ATTENTIVE = tuple(
    name for name, row in FORECASTERS.items() if row.role == "attention" and name not in PRETRAINED
)
# Those whose sites all have weights over keys.
MIXING = tuple(name for name in ATTENTIVE if FORECASTERS[name].view == "Mixing")

_SIZES = {
    "iTransformer": {"e_layers": 3},
    "PatchTST": {"e_layers": 2, "patch_len": 8, "stride": 4},
    "Transformer": {"e_layers": 1, "d_layers": 2, "label_len": 8},
    "PAttn": {"patch_len": 8, "stride": 4},
    "TimeXer": {"e_layers": 2, "patch_len": 8},
    **{
        name: {"label_len": 8, "factor": 1, "moving_average": 5, "modes": 4}
        for name in ("Nonstationary", "Informer", "Autoformer", "FEDformer")
    },
    "Crossformer": {"segment": 4},
}


def sizes(name: str, **others: int) -> dict[str, Any]:
    """Small settings of a model, as changes of a variant."""
    common = {"d_model": 8, "d_ff": 16, "n_heads": 2, "dropout": 0.1}
    names = {field.name for field in fields(FORECASTERS[name].settings)}
    every = {**common, **_SIZES.get(name, {}), **others}
    return {key: value for key, value in every.items() if key in names}


def small(name: str, dtype: torch.dtype = torch.float64) -> Forecaster:
    """A model with two heads a site, its attention far from uniform, in training mode."""
    torch.manual_seed(0)
    settings = setup(name, "deep", "synthetic", 96, sizes(name)).settings
    model = build(name, settings, Shape(LOOKBACK, HORIZON, CHANNELS), seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype).train()


# Cores that compute softmax(q k^T / sqrt(d)) v.
PLAIN = (AttentionCore, PrototypeCore)


def _softmax(name: str) -> bool:
    sites = small(name).sites()
    return all(
        site.heads > 1 and type(getattr(site.attention, "core", None)) in PLAIN for site in sites
    )


def windows(dtype: torch.dtype = torch.float64, device: str = "cpu") -> Windows:
    """165 windows of three random walks."""
    steps = torch.randn(200, CHANNELS, generator=torch.Generator().manual_seed(1))
    walk = steps.cumsum(0)
    standard = (walk - walk.mean(0)) / walk.std(0, correction=0)
    return Windows(standard.to(device, dtype), None, 0, 200, LOOKBACK, HORIZON)


# Those whose sites all are softmax attention with several heads.
SOFTMAX = tuple(name for name in ATTENTIVE if _softmax(name))


def batches(size: int, count: int = 40) -> list[Tensor]:
    """`count` windows in a fixed random order, cut into batches: a group of 32, and a rest."""
    order = torch.randperm(len(windows()), generator=torch.Generator().manual_seed(2))
    return list(torch.split(order[:count], size))


def score_frame(
    model: Forecaster,
    cases: Windows,
    cut: list[Tensor],
    criteria: Any = None,
    *,
    batch_size: int = 32,
    **options: Any,
) -> pd.DataFrame:
    """The frame of `score`."""
    scores = score(model, cases, cut, LOSSES, criteria, batch_size=batch_size, **options)
    return scores_frame.frame(scores)


def traces(model: Forecaster, batch: Batch) -> list[Trace]:
    """The traces of the sites of a model for a batch."""
    return observe(model, batch, LOSSES)


def averaged(
    model: Forecaster, cases: Windows, cut: list[Tensor], functions: dict[str, Any]
) -> list[SiteMeans]:
    """`window_means` of functions of the traces of a model."""
    return window_means(lambda b: traces(model, b), cases, cut, functions, batch_size=32)


def mixed(trace: Trace) -> Mixing:
    """The view `Mixing` of a trace."""
    return trace.mixing
