"""Can attention be removed from a forecaster of your own data, and what is saved?

The result of `spat.pipeline.advise`, as text, table and figure. The number of
attention modules to remove is chosen on validation windows; the change of the error is measured on
test windows. Changes are relative to the dense network or the control, whichever has the lower
validation error, with intervals from `spat.study.statistics.bootstrap`.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pandas as pd

from spat.attention.discovery import columns
from spat.study.statistics.bootstrap import MIN_BLOCKS, Change, block_length, relative_change

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

DENSE: Final = "dense"
CONTROL: Final = "control"
# The length of a line of text, in characters.
WIDTH: Final = 88
# The share of the rows in the test part: the split is 70/10/20.
TEST_SHARE: Final = 0.2


@dataclass(frozen=True, eq=False)
class Network:
    """A trained network of the comparison.

    Attributes:
        name: The name of the network in text and table.
        removed: The number of removed attention modules.
        mask: The modules that are kept (`spat.attention.mask`).
        validation: MSE of the validation windows; infinite if training diverged.
        losses: MSE of each test window, [N].
        mae: Mean absolute error of the test windows.
        parameters: The number of parameters.
        flops: Floating-point operations of one forecast.
        latency_ms: Time of one forecast, in milliseconds.
    """

    name: str
    removed: int
    mask: str
    validation: float
    losses: NDArray[np.float32]
    mae: float
    parameters: int
    flops: int
    latency_ms: float

    @property
    def mse(self) -> float:
        """MSE of the test windows."""
        return float(self.losses.mean(dtype="float64"))


@dataclass(frozen=True, eq=False)
class Advice:
    """The result of `advise`. `print` shows the advice as text, then the table.

    Attributes:
        folder: The folder of `advice.txt`, `advice.csv`, `advice.png` and the saved forecasters
            `dense`, `recommended` and `linear`.
        title: The name of the data and the length of the forecast.
        model: The name of the Transformer.
        lookback: The number of input rows of a forecast.
        horizon: The number of forecast rows.
        path: The dense network, the control, and the networks with 1, 2, ... all modules rechange.
        linear: The linear model.
        uncertain: Whether other work ran on the machine while the latencies were measured.
    """

    folder: Path
    title: str
    model: str
    lookback: int
    horizon: int
    path: tuple[Network, ...]
    linear: Network
    uncertain: bool

    @property
    def sites(self) -> int:
        """The number of attention modules of the dense network."""
        return self.path[-1].removed

    @cached_property
    def reference(self) -> Network:
        """The dense network or the control, whichever has the lower validation error."""
        return min((n for n in self.path if not n.removed), key=lambda n: n.validation)

    @cached_property
    def chosen(self) -> Network:
        """The network with the lowest validation error; of equal ones that with fewest modules."""
        best = min(self.path, key=lambda n: (n.validation, -n.removed))
        return best if best.removed else self.reference

    @property
    def recommended(self) -> Network:
        """The chosen network, or the reference if the chosen one is worse on the test windows."""
        return self.reference if self.change(self.chosen).low > 0 else self.chosen

    def change(self, network: Network, against: Network | None = None) -> Change:
        """The relative change of the test MSE, by default against the reference."""
        base = against or self.reference
        return relative_change(
            base.losses, network.losses, block_length(self.lookback, self.horizon)
        )

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per network. Changes are fractions, with a 95 % interval from `low` to `high`.

        Errors are in (squared) standard deviations of the training rows. `role` marks the
        reference, the network that validation chose, and the recommended network.
        """
        rows = []
        for network in (*self.path, self.linear):
            change = self.change(network)
            rows.append(
                {
                    "network": network.name,
                    "removed": network.removed,
                    "mask": network.mask,
                    "validation_mse": network.validation,
                    "test_mse": network.mse,
                    "test_mae": network.mae,
                    "change": change.change,
                    "low": change.low,
                    "high": change.high,
                    "parameters": network.parameters,
                    "flops": network.flops,
                    "latency_ms": network.latency_ms,
                    "role": ", ".join(self._roles(network)),
                }
            )
        return pd.DataFrame(rows)

    @property
    def text(self) -> str:
        """The advice in sentences."""
        parts = [self._verdict(), self._without_attention(), self._savings(), self._linear()]
        parts.append(
            "Reference: the dense network or the control (the dense network after the same extra "
            "epochs as the pruned ones), whichever has the lower validation error."
        )
        parts.append(
            "Uncertainty: each network was trained once. The intervals reflect variation across "
            "test windows (paired block bootstrap, blocks of lookback + horizon windows). They do "
            "not reflect another random initialisation, which can change an error by about one "
            "percent."
        )
        return "\n".join(textwrap.fill(part, WIDTH) for part in parts if part)

    def figure(self) -> Figure:
        """A figure: changes of the error with their intervals (left), and costs (right)."""
        from spat.study.pages import style

        networks = (*self.path, self.linear)
        with style.drawing():
            figure = style.canvas(width=7.0, height=1.1 + 0.32 * len(networks))
            left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
            for place, network in enumerate(networks):
                change = self.change(network)
                middle = 100 * change.change
                spread = [[middle - 100 * change.low], [100 * change.high - middle]]
                known = math.isfinite(change.low) and network is not self.reference
                chosen = network is self.recommended
                left.errorbar(
                    [middle], [place], xerr=spread if known else None, fmt="s" if chosen else "o",
                    color=style.mark("SPAT (val.)" if chosen else "dense").colour, capsize=2, lw=1,
                )  # fmt: skip
            left.axvline(0, **style.BORDER)
            left.set_xlabel("change of the test MSE (%), 95 % interval")
            left.set_yticks(range(len(networks)), [self._label(n) for n in networks])
            left.invert_yaxis()
            for shift, name in enumerate(("parameters", "FLOPs", "latency_ms")):
                dense, *_ = costs = [getattr(n, name.lower()) for n in networks]
                right.barh(
                    [place + 0.25 * (shift - 1) for place in range(len(networks))],
                    [100 * cost / dense for cost in costs],
                    height=0.22, color=style.COLOURS[2 + shift], label=name.removesuffix("_ms"),
                )  # fmt: skip
            right.set_xlabel("cost (% of the dense network)")
            figure.legend(loc="outside lower right", ncols=3)
            figure.suptitle(self.title, fontsize=9)
        return figure

    def __str__(self) -> str:
        head = ("", "test MSE", "MAE", "change", "95 % interval", "parameters", "MFLOPs", "ms", "")
        lines = [
            (
                network.name, f"{network.mse:.4f}", f"{network.mae:.4f}",
                *self._change_and_interval(network), f"{network.parameters:,}",
                f"{network.flops / 1e6:.2f}", f"{network.latency_ms:.2f}",
                ", ".join(self._roles(network)),
            )
            for network in (*self.path, self.linear)
        ]  # fmt: skip
        return f"{self.text}\n\n{columns([head, *lines])}"

    __repr__ = __str__

    def _roles(self, network: Network) -> list[str]:
        roles = {
            "reference": self.reference,
            "chosen": self.chosen,
            "recommended": self.recommended,
        }
        return [role for role, of in roles.items() if of is network]

    def _label(self, network: Network) -> str:
        roles = [role for role in self._roles(network) if role != "chosen"]
        return f"{network.name}\n({', '.join(roles)})" if roles else network.name

    def _change_and_interval(self, network: Network) -> tuple[str, str]:
        """Two columns of the table; they are empty for the reference itself."""
        if network is self.reference:
            return "", ""
        change = self.change(network)
        known = math.isfinite(change.low)
        interval = f"{_percent(change.low)} to {_percent(change.high)}" if known else "none"
        return _percent(change.change), interval

    def _verdict(self) -> str:
        chosen, change = self.chosen, self.change(self.chosen)
        modules = f"{chosen.removed} of the {self.sites} attention modules"
        if not chosen.removed:
            return (
                f"Keep all {self.sites} attention modules: no network with fewer modules has a "
                f"lower validation error than the reference ({self.reference.name})."
            )
        compared = f"{_described(change)}, compared with the reference ({self.reference.name})"
        if change.high < 0:
            return f"Attention can be removed: remove {modules}. The test error is then {compared}."
        if change.low > 0:
            return (
                f"Keep the attention. Validation selects the network without {modules}, but its "
                f"test error is {compared}."
            )
        start = (
            f"Validation selects the network without {modules}. Its test error is {compared}. It "
            "is not clear whether the error changes: "
        )
        if math.isfinite(change.low):
            return (
                f"{start}the interval contains 0. Remove the modules if the savings justify an "
                f"error that may be {_percent(change.high)[1:]} higher."
            )
        windows = MIN_BLOCKS * block_length(self.lookback, self.horizon)
        rows = math.ceil((windows + self.horizon) / TEST_SHARE)
        return (
            f"{start}the test part is too short for an interval, which needs a file of about "
            f"{rows} rows."
        )

    def _without_attention(self) -> str:
        """The sentences about the network without any attention."""
        change = self.change(self.path[-1])
        text = ""
        if self.chosen is not self.path[-1]:
            text = f"Without any attention, the test error is {_described(change)}"
            text += ", and the interval contains 0. " if change.low <= 0 <= change.high else ". "
        if change.low > 0:
            reason = (
                "The channels depend on each other, and this model combines channels only in its "
                "attention modules."
                if self.model == "iTransformer"
                else "The forecast depends on them."
            )
            text += f"Warning: do not remove all attention modules. {reason}"
        elif self.recommended is self.path[-1] and self.model == "iTransformer":
            text += (
                "Without attention, this model forecasts each channel from its own past only. If "
                "the channels begin to depend on each other, train again."
            )
        return text

    def _savings(self) -> str:
        if not self.recommended.removed:
            return "Nothing is saved, since the recommended network has all attention modules."
        dense, small = self.path[0], self.recommended
        saved = [
            _percent(getattr(small, cost) / getattr(dense, cost) - 1, 0)
            for cost in ("parameters", "flops", "latency_ms")
        ]
        text = (
            f"Savings of the recommended network ({small.name}): parameters {saved[0]} "
            f"({dense.parameters:,} to {small.parameters:,}), FLOPs {saved[1]}, latency of one "
            f"forecast {saved[2]} ({dense.latency_ms:.2f} to {small.latency_ms:.2f} ms)."
        )
        busy = " The latencies are uncertain, since the machine was busy."
        return text + (busy if self.uncertain else "")

    def _linear(self) -> str:
        change = self.change(self.linear, self.recommended)
        if change.high < 0:
            ending = "The linear model is better: use it."
        elif change.low > 0:
            ending = "The linear model is worse."
        else:
            ending = "It is not clear which is better: prefer the linear model, which is simpler."
        return (
            f"For comparison, a linear model was trained ({self.linear.name}, "
            f"{self.linear.parameters:,} parameters, learning rate chosen on validation). Its test "
            f"error is {_described(change)}, compared with the recommended network. {ending}"
        )


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:+.{digits}f} %"


def _described(change: Change) -> str:
    """A change with its interval: `1.8 % lower (95 % interval: -3.9 % to +0.4 %)`."""
    low, high = _percent(change.low), _percent(change.high)
    interval = f"95 % interval: {low} to {high}" if math.isfinite(change.low) else "no interval"
    side = "lower" if change.change < 0 else "higher"
    return f"{_percent(abs(change.change))[1:]} {side} ({interval})"
