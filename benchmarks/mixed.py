"""Training steps in bfloat16 on the CPU, against float32 and against torch's own autocast."""

from __future__ import annotations

import torch
from alternation import alternate, rates
from cases import TASK, Size, wide_case
from engine import our_steps
from figure import Figure, Part, Series, Target
from torch import Tensor, nn

from spat.tasks.forecasting import Batch, Forecasting
from spat.training.device import bf16


class Autocast(Forecasting):
    """Forecasting with the forward pass under `torch.autocast`."""

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The forecast [B, H, C] in float32."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(model, batch).float()


def measure(size: Size) -> Part:
    """Measure the speed of `precision: bf16` as a multiple of that of float32, by network."""
    part = Part()
    if not bf16.supported():
        part.remarks["bf16"] = "skipped: this processor has neither AVX512_BF16 nor AMX"
        return part
    for network in size.mixed:
        case = wide_case(size, network.model, network.channels, network.changes, network.batch)
        short = case.short(network.batches)
        laps = alternate(
            {
                "float32": our_steps(short),
                "bf16": our_steps(short, TASK, "bf16"),
                "autocast": our_steps(short, Autocast()),
            },
            size.rounds,
        )
        against = Series("float32", "windows/s", rates(laps["float32"]))
        target = Target("at least", network.target) if network.target else None
        part.figures += [
            Figure(
                f"bf16/{network.name}/{name}",
                Series(name, "windows/s", rates(laps[name])),
                against,
                target if name == "bf16" else None,
            )
            for name in ("bf16", "autocast")
        ]
    return part
