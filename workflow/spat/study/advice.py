"""Can attention be removed from a forecaster of your own data, and what is saved?

Holds the result of `spat.pipeline.advise` and renders it as text, table and figure. The number of
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

from spat.scoring.foreign import columns
from spat.study.statistics.bootstrap import MIN_BLOCKS, Change, block_length, relative_change

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

DENSE: Final = "dense"
CONTROL: Final = "control"
# Of the words, in characters, and of the test part, where the split is 70/10/20.
WIDTH: Final = 88
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
        path: The dense network, the control, and the networks with 1, 2, ... all modules removed.
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
            moved = self.change(network)
            rows.append(
                {
                    "network": network.name,
                    "removed": network.removed,
                    "mask": network.mask,
                    "validation_mse": network.validation,
                    "test_mse": network.mse,
                    "test_mae": network.mae,
                    "change": moved.change,
                    "low": moved.low,
                    "high": moved.high,
                    "parameters": network.parameters,
                    "flops": network.flops,
                    "latency_ms": network.latency_ms,
                    "role": ", ".join(self._roles(network)),
                }
            )
        return pd.DataFrame(rows)

    @property
    def words(self) -> str:
        """The advice as text."""
        parts = [self._verdict(), self._emptied(), self._saved(), self._linear()]
        parts.append(
            "How sure this is: each network was trained once. The interval covers other test "
            "windows (paired block bootstrap, blocks of lookback + horizon), not another random "
            "start, which can change an error by about one percent."
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
                moved = self.change(network)
                middle = 100 * moved.change
                spread = [[middle - 100 * moved.low], [100 * moved.high - middle]]
                known = math.isfinite(moved.low) and network is not self.reference
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
                *self._moved(network), f"{network.parameters:,}", f"{network.flops / 1e6:.2f}",
                f"{network.latency_ms:.2f}", ", ".join(self._roles(network)),
            )
            for network in (*self.path, self.linear)
        ]  # fmt: skip
        return f"{self.words}\n\n{columns([head, *lines])}"

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

    def _moved(self, network: Network) -> tuple[str, str]:
        if network is self.reference:
            return "", ""
        moved = self.change(network)
        known = math.isfinite(moved.low)
        interval = f"{_percent(moved.low)} to {_percent(moved.high)}" if known else "none"
        return _percent(moved.change), interval

    def _verdict(self) -> str:
        chosen, moved = self.chosen, self.change(self.chosen)
        modules = f"{chosen.removed} of the {self.sites} attention modules"
        compared = f"against the {self.reference.name} network, the better one on validation"
        if not chosen.removed:
            return (
                f"Keep the attention. On validation no network without some of its {self.sites} "
                f"attention modules is better than the {self.reference.name} network."
            )
        if moved.high < 0:
            return (
                f"Yes, attention can go: remove {modules}. The test error is {_range(moved)}, "
                f"{compared}."
            )
        if moved.low > 0:
            return (
                f"Keep the attention. Validation chose to remove {modules}, but on the test "
                f"windows the error is then {_range(moved)}, {compared}."
            )
        start = (
            f"Validation chose to remove {modules}. Whether that changes the error is not clear: "
            f"on the test windows it is {_range(moved)}, {compared}"
        )
        if math.isfinite(moved.low):
            return (
                f"{start}, and the interval holds 0. Do so if what is saved is worth an error "
                f"that may be {_percent(moved.high)[1:]} higher."
            )
        windows = MIN_BLOCKS * block_length(self.lookback, self.horizon)
        rows = math.ceil((windows + self.horizon) / TEST_SHARE)
        return (
            f"{start}. The test part is too short for an interval, which needs a file of about "
            f"{rows} rows."
        )

    def _emptied(self) -> str:
        """The sentence about the network without any attention."""
        moved = self.change(self.path[-1])
        text = ""
        if self.chosen is not self.path[-1]:
            clear = moved.low > 0 or moved.high < 0
            text = f"Without any attention the test error is {_range(moved)}"
            text += ". " if clear else ": not clear. "
        if moved.low > 0:
            channels = self.model == "iTransformer"
            reason = (
                "the channels depend on each other, which this model sees through attention alone"
                if channels
                else "the forecast depends on what attention combines"
            )
            text += f"Warning: do not remove all of it, since {reason}."
        elif self.recommended is self.path[-1] and self.model == "iTransformer":
            text += (
                "Without attention this model forecasts each channel from its own past alone. If "
                "the channels come to depend on each other, train again."
            )
        return text

    def _saved(self) -> str:
        if not self.recommended.removed:
            return "Nothing is saved: the recommended network has all of its attention."
        dense, small = self.path[0], self.recommended
        saved = [
            _percent(getattr(small, cost) / getattr(dense, cost) - 1, 0)
            for cost in ("parameters", "flops", "latency_ms")
        ]
        text = (
            f"Saved by the recommended network ({small.name}): parameters {saved[0]} "
            f"({dense.parameters:,} to {small.parameters:,}), FLOPs {saved[1]}, latency of one "
            f"forecast {saved[2]} ({dense.latency_ms:.2f} to {small.latency_ms:.2f} ms)."
        )
        busy = " The latencies are uncertain, since the machine was busy."
        return text + (busy if self.uncertain else "")

    def _linear(self) -> str:
        moved = self.change(self.linear, self.recommended)
        if moved.high < 0:
            ending = "it is better, so use it"
        elif moved.low > 0:
            ending = "it is worse"
        else:
            ending = "not clear which is better, so prefer the simpler one"
        return (
            f"For comparison a linear model ({self.linear.name}, {self.linear.parameters:,} "
            "parameters, its learning rate chosen on validation) was trained. Its test error is "
            f"{_range(moved)}, against the recommended network: {ending}."
        )


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:+.{digits}f} %"


def _range(change: Change) -> str:
    low, high = _percent(change.low), _percent(change.high)
    interval = f"95 % interval: {low} to {high}" if math.isfinite(change.low) else "no interval"
    side = "lower" if change.change < 0 else "higher"
    return f"{_percent(abs(change.change))[1:]} {side} ({interval})"
