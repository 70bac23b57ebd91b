"""The names and properties of the criteria. This module does not import torch.

A high score means keep. A new criterion needs a function (in `criteria.py`) and a row here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

# The view that a criterion needs of a site: see `attention.views`.
ViewName = Literal["Output", "Residual", "Heads", "Mixing"]
VIEWS: Final[tuple[ViewName, ...]] = ("Output", "Residual", "Heads", "Mixing")

# The windows that one value of a function is computed from: a single window, 32 windows that share
# a mask, or a training batch whose windows share a mask.
Over = Literal["window", "group", "batch"]

# The origin of the values: the pass over the scored windows (`Over`); forward passes without each
# site, on training or validation windows; the record of pre-training; or none, since random masks
# are drawn at selection.
Origin = Literal["window", "group", "batch", "ablation", "validation", "pretraining", "draws"]

# The origins that are computed in one pass over training windows.
PASS: Final = ("window", "group", "batch")

# The last step, from the mean over windows to the score.
FinishName = Literal["mean", "negative", "complement", "absolute", "root_sum", "variance_sum"]


@dataclass(frozen=True)
class Criterion:
    """A score of sites, and of single heads if `heads` is true.

    `needs` is the view that a site must offer. `finish` names the function in `criterion.py` that
    turns the mean over windows into the score; `mean` leaves it unchanged.
    """

    name: str
    origin: Origin
    needs: ViewName
    heads: bool
    source: str
    description: str
    finish: FinishName = "mean"


_SPAT: Final = "SPAT, arXiv 2505.08768"
_PRINTED: Final = f"{_SPAT}, as printed in a review"
_OUR_READING: Final = f"{_SPAT} (our reading)"

_ROWS: Final = (
    Criterion(
        "send", "batch", "Mixing", True, _PRINTED,
        "deviation over keys of the softmax of |S|, with one mask per training batch",
    ),
    Criterion(
        "send_float32", "batch", "Mixing", True, _PRINTED,
        "SEND computed in float32, the default precision",
    ),
    Criterion(
        "send_window", "window", "Mixing", True, _OUR_READING,
        "deviation over keys of the softmax of S, with one mask per window",
    ),
    Criterion(
        "send_abs", "window", "Mixing", True, _OUR_READING,
        "SEND by window, of |S|",
    ),
    Criterion(
        "send_shared", "group", "Mixing", True, _OUR_READING,
        "SEND by window, with one mask shared by 32 windows and their mean loss",
    ),
    Criterion(
        "send_layer", "window", "Mixing", False, _OUR_READING,
        "SEND by window, of S summed over heads",
    ),
    Criterion(
        "send_train", "pretraining", "Mixing", True, _PRINTED,
        "mean of SEND over the epochs of pre-training, taken after each epoch without dropout",
    ),
    Criterion(
        "send_keys", "window", "Mixing", True, _OUR_READING,
        "SEND by window, times the number of keys of each row",
    ),
    Criterion(
        "send_unit", "window", "Mixing", True, _OUR_READING,
        "SEND by window, of S scaled to unit mean absolute value per window and site",
    ),
    Criterion(
        "send_reverse", "batch", "Mixing", True, _PRINTED,
        "minus SEND: removes the sites that SEND would keep", finish="negative",
    ),
    Criterion(
        "random", "draws", "Output", True, "Budhraja et al. 2020",
        "masks drawn at random",
    ),
    Criterion(
        "michel", "window", "Output", True, "Michel et al. 2019, arXiv 1905.10650",
        "mean absolute gate gradient |g|",
    ),
    Criterion(
        "taylor", "window", "Output", True, "Molchanov et al. 2017, arXiv 1611.06440",
        "absolute mean gate gradient |mean g|", finish="absolute",
    ),
    Criterion(
        "fisher", "window", "Output", True, "Theis et al. 2018, arXiv 1801.05787",
        "mean squared gate gradient",
    ),
    Criterion(
        "snip", "window", "Mixing", True, "SNIP, Lee et al. 2019, arXiv 1810.02340",
        "sum of |S|",
    ),
    Criterion(
        "cosine", "window", "Residual", False, "LLM-Drop, He et al. 2024, arXiv 2406.15786",
        "1 - cos(x, x + attention(x)), x the residual stream",
    ),
    Criterion(
        "block_influence", "window", "Residual", False,
        "ShortGPT, Men et al. 2024, arXiv 2403.03853",
        "1 - cos between input and output of the whole layer",
    ),
    Criterion(
        "magnitude", "window", "Heads", True, "Han et al. 2015, arXiv 1506.02626",
        "Frobenius norm of W_o W_v",
    ),
    Criterion(
        "wanda", "window", "Heads", True, "Wanda, Sun et al. 2023, arXiv 2306.11695",
        "|W_o| times the norm of its input columns", finish="root_sum",
    ),
    Criterion(
        "flap", "window", "Heads", True, "FLAP, An et al. 2023, arXiv 2312.11983",
        "squared norm of W_o times the variance of its input columns", finish="variance_sum",
    ),
    Criterion(
        "entropy", "window", "Mixing", True, "Voita et al. 2019, arXiv 1905.09418",
        "1 - normalised row entropy of the attention maps", finish="complement",
    ),
    Criterion(
        "attention_std", "window", "Mixing", True, "SEND without the gradient",
        "deviation over keys of the attention maps",
    ),
    Criterion(
        "loss_drop", "ablation", "Output", False, "Michel et al. 2019, section 3",
        "training loss without the site minus with it",
    ),
    Criterion(
        "loss_drop_val", "validation", "Output", False, "Michel et al. 2019, section 3",
        "validation loss without the site minus with it",
    ),
    Criterion(
        "depth_first", "window", "Output", False, "position, the first go first",
        "index in forward order",
    ),
    Criterion(
        "depth_last", "window", "Output", False,
        "position, the deepest go first: Tyukin et al. 2024, arXiv 2407.15516",
        "minus the index in forward order", finish="negative",
    ),
)  # fmt: skip

CRITERIA: Final[dict[str, Criterion]] = {row.name: row for row in _ROWS}

HEAD_CRITERIA: Final[dict[str, Criterion]] = {row.name: row for row in _ROWS if row.heads}

# Recorded with the scores, but not used for ranking.
STATISTICS: Final[dict[str, Criterion]] = {
    "uniformity": Criterion(
        "uniformity", "window", "Mixing", True, _SPAT,
        "normalised row entropy of the attention maps",
    )
}  # fmt: skip


def offered(views: Collection[ViewName]) -> tuple[str, ...]:
    """The names of the criteria for a model whose sites all offer these views."""
    return tuple(name for name, row in CRITERIA.items() if row.needs in views)
