"""The criteria: one row each, names only, nothing imported.

A high score means keep. A new criterion is one function (in `criteria.py`) and one row here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

# Where the values come from: the probe (one forward and backward pass), window by window or for
# groups of windows; forward passes without each site, on training or on validation windows; the
# record of pre-training; or nowhere, because masks are drawn at random when they are selected.
Needs = Literal["probe", "group", "ablation", "validation", "trajectory", "draws"]

# What becomes of the mean over windows of what the function returns.
Finish = Literal["mean", "negative", "complement", "absolute", "root_sum", "variance_sum"]


@dataclass(frozen=True)
class Criterion:
    """A score of sites, and of single heads where `heads` is true.

    `function` is ``module.name`` below `spat.scoring`; where it `needs` the probe, it maps a
    `SiteRecord` to values per window (`group`: a `SharedMask` to those of a group). `finish` names
    the function in `criteria.py` that turns their mean over windows into the score; `mean` is that
    mean itself.
    """

    name: str
    function: str
    needs: Needs
    heads: bool
    source: str
    description: str
    finish: Finish = "mean"


_SPAT: Final = "SPAT, arXiv 2505.08768 (our reading)"

_ROWS: Final = (
    Criterion(
        "send", "send.send", "probe", True, _SPAT,
        "deviation over keys of the softmax of the sensitivities S",
    ),
    Criterion(
        "send_abs", "send.send_abs", "probe", True, _SPAT,
        "SEND of |S|",
    ),
    Criterion(
        "send_shared", "send.send_shared", "group", True, _SPAT,
        "SEND of one mask shared by 32 windows, under their mean loss",
    ),
    Criterion(
        "send_layer", "send.send_layer", "probe", False, _SPAT,
        "SEND of S summed over heads",
    ),
    Criterion(
        "send_train", "", "trajectory", True, _SPAT,
        "mean of SEND over the epochs of pre-training",
    ),
    Criterion(
        "send_keys", "send.send_keys", "probe", True, _SPAT,
        "SEND times the number of keys of each row",
    ),
    Criterion(
        "send_unit", "send.send_unit", "probe", True, _SPAT,
        "SEND of S scaled to unit mean absolute value per window and site",
    ),
    Criterion(
        "send_reverse", "send.send", "probe", True, _SPAT,
        "minus SEND: removes what SEND would keep", finish="negative",
    ),
    Criterion(
        "random", "", "draws", True, "Budhraja et al. 2020",
        "masks drawn at random",
    ),
    Criterion(
        "michel", "criteria.michel", "probe", True, "Michel et al. 2019, arXiv 1905.10650",
        "mean absolute gate gradient |g|",
    ),
    Criterion(
        "taylor", "criteria.taylor", "probe", True, "Molchanov et al. 2017, arXiv 1611.06440",
        "absolute mean gate gradient |mean g|", finish="absolute",
    ),
    Criterion(
        "fisher", "criteria.fisher", "probe", True, "Theis et al. 2018, arXiv 1801.05787",
        "mean squared gate gradient",
    ),
    Criterion(
        "snip", "criteria.snip", "probe", True, "SNIP, Lee et al. 2019, arXiv 1810.02340",
        "sum of |S|",
    ),
    Criterion(
        "cosine", "criteria.cosine", "probe", False, "LLM-Drop, He et al. 2024, arXiv 2406.15786",
        "1 - cos(x, x + attention(x)), before the norm",
    ),
    Criterion(
        "block_influence", "criteria.block_influence", "probe", False,
        "ShortGPT, Men et al. 2024, arXiv 2403.03853",
        "1 - cos between input and output of the whole layer",
    ),
    Criterion(
        "magnitude", "criteria.magnitude", "probe", True, "Han et al. 2015, arXiv 1506.02626",
        "Frobenius norm of W_o W_v",
    ),
    Criterion(
        "wanda", "criteria.wanda", "probe", True, "Wanda, Sun et al. 2023, arXiv 2306.11695",
        "|W_o| times the norm of its input columns", finish="root_sum",
    ),
    Criterion(
        "flap", "criteria.flap", "probe", True, "FLAP, An et al. 2023, arXiv 2312.11983",
        "squared norm of W_o times the variance of its input columns", finish="variance_sum",
    ),
    Criterion(
        "entropy", "criteria.uniformity", "probe", True, "Voita et al. 2019, arXiv 1905.09418",
        "1 - normalised row entropy of the attention maps", finish="complement",
    ),
    Criterion(
        "attention_std", "criteria.attention_std", "probe", True, "SEND without the gradient",
        "deviation over keys of the attention maps",
    ),
    Criterion(
        "loss_drop", "probe.loss_drops", "ablation", False, "Michel et al. 2019, section 3",
        "training loss without the site minus with it",
    ),
    Criterion(
        "loss_drop_val", "probe.loss_drops", "validation", False, "Michel et al. 2019, section 3",
        "validation loss without the site minus with it",
    ),
    Criterion(
        "depth_first", "criteria.depth", "probe", False, "position, the first go first",
        "index in forward order",
    ),
    Criterion(
        "depth_last", "criteria.depth", "probe", False,
        "position, the deepest go first: Tyukin et al. 2024, arXiv 2407.15516",
        "minus the index in forward order", finish="negative",
    ),
)  # fmt: skip

CRITERIA: Final[dict[str, Criterion]] = {row.name: row for row in _ROWS}

HEAD_CRITERIA: Final[dict[str, Criterion]] = {row.name: row for row in _ROWS if row.heads}

# Recorded with the scores, but ranks nothing.
STATISTICS: Final[dict[str, Criterion]] = {
    "uniformity": Criterion(
        "uniformity", "criteria.uniformity", "probe", True, "SPAT, arXiv 2505.08768",
        "normalised row entropy of the attention maps",
    )
}  # fmt: skip
