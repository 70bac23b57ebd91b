"""Why SEND is computed in float64: its error in float32, by the number of keys.

    python -m spat.study.float32 > workflow/spat/study/precision.csv

The sensitivities S come from untrained networks on generated data, whose attention has 7, 42 and
321 keys: the channels of ETT and of Electricity (iTransformer), and patches at lookback 336
(PatchTST). The softmax over K keys differs from 1 / K by about S / K, and float32 resolves 1 / K to
6e-8 / K. So the error depends on the size of S, which falls with the number of keys and, if the
loss is the mean over a batch, with the number of windows.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from spat.attention.views import Trace
from spat.data.synthetic import generate
from spat.data.windows import Windows
from spat.models.registry import Shape, build, setup
from spat.pipeline.config import SyntheticSection
from spat.scoring.probe import observe
from spat.scoring.reductions import dispersion
from spat.tasks.forecasting import Forecasting
from spat.tasks.task import case_losses

# keys -> (model, lookback, channels)
CASES: Final = {
    7: ("iTransformer", 96, 7),
    42: ("PatchTST", 336, 7),
    321: ("iTransformer", 96, 321),
}
HORIZON: Final = 96
WINDOWS: Final = 16
ROWS: Final = 800
# The divisor of S for each loss.
LOSSES: Final = {"of each window": 1, "mean of 32 windows": 32}


def errors(trace: Trace, scale: float = 1.0) -> Tensor:
    """The error of SEND in float32, computed from S / scale, for each window.

    S is computed in float64 and rounded to float32.

    Returns:
        [2, W]: the relative error of SEND, and the share of rows whose SEND becomes 0.
    """
    S, allowed = trace.mixing.S / scale, trace.mixing.allowed
    exact = dispersion(S, allowed)
    single = dispersion(S.float(), allowed).double()
    inner = (1, 2, 3)
    return torch.stack(
        [single.mean(inner) / exact.mean(inner) - 1, (single == 0).double().mean(inner)]
    )


def case(keys: int) -> list[dict[str, float | str]]:
    """The rows of the table for one number of keys, one row for each loss.

    Relative errors are averaged over the sites of a window first: `bias` and `sd` are their mean
    and standard deviation over windows, `worst` is the largest error of a single site, and `erased`
    is the share of rows whose SEND becomes 0 in float32.
    """
    model, lookback, channels = CASES[keys]
    settings = setup(model, "deep", "ETTh2", HORIZON).settings
    network = build(model, settings, Shape(lookback, HORIZON, channels), seed=0)
    windows = _windows(lookback, channels)
    index = torch.linspace(0, len(windows) - 1, WINDOWS).long()
    records = observe(network, windows.batch(index), case_losses(Forecasting()))
    rows: list[dict[str, float | str]] = []
    for loss, scale in LOSSES.items():
        parts = [torch.cat([errors(part, scale) for part in r.parts()], dim=1) for r in records]
        relative, erased = torch.stack(parts).unbind(1)  # [sites, W] each
        rows.append(
            {
                "model": model,
                "keys": keys,
                "loss": loss,
                "bias": float(relative.mean()),
                "sd": float(relative.mean(0).std()),
                "worst": float(relative.abs().max()),
                "erased": float(erased.mean()),
                "windows": WINDOWS,
            }
        )
    return rows


def _windows(lookback: int, channels: int) -> Windows:
    made = SyntheticSection.model_validate({})
    values = generate(ROWS, channels, made.seed, made.coupling, made.noise).values
    standard = (values - values.mean(0)) / values.std(0)
    return Windows(torch.from_numpy(standard).float(), None, 0, ROWS, lookback, HORIZON)


def main() -> None:
    """Print the table as CSV."""
    rows = [row for keys in CASES for row in case(keys)]
    print(",".join(rows[0]))
    for row in rows:
        print(",".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))


if __name__ == "__main__":
    main()
