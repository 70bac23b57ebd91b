"""What a page is: its declaration above its function, and its wording for each task.

The study is written for forecasting. For every task its wide frames have the primary metric in a
column `mse`, the second metric in `mae`, and the setting in `lookback` and `horizon`. For another
task, `Words` replaces the terms of forecasting in all text of the pages. Importing this module
loads neither pandas nor matplotlib.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

from spat.tasks.setting import IMAGES_IN_BLOCK, Window

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Kind = Literal["table", "figure"]
Function = TypeVar("Function", bound=Callable[..., Any])


class Absent(Exception):  # noqa: N818  (a result, not an error)
    """The experiment has no data for a page; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Layout:
    """How a tidy table becomes a page.

    `rows` are the key columns. The values of the column `columns` become the columns of the page.
    If `best` is set, the cells of a row that have no unit are compared and the best ones marked,
    except in the columns `unranked`; with `within`, the cells of a column whose rows have equal
    keys `within` are compared instead. Keys with the same value in all rows are moved to a note,
    except those in `kept`. `counted` is the unit of `n`, for example seeds.
    """

    rows: tuple[str, ...]
    columns: str
    best: bool = True
    unranked: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    counted: str = "seeds"


@dataclass(frozen=True)
class Note:
    """A note that is shown only where a column name, key or spread of the page contains `about`."""

    about: str
    text: str


@dataclass(frozen=True)
class Page:
    """A table or figure: the function that makes it from the frames, and its texts.

    `function` takes `spat.study.pages.reader.Frames`. For a table it returns the tidy frame, which
    `layout` arranges and `notes` explain; for a figure it returns a matplotlib figure. It raises
    `Absent` if the experiment has no data for it. `caption` is reStructuredText for the report.
    """

    kind: Kind
    name: str
    title: str
    caption: str
    function: Callable[..., Any]
    layout: Layout | None = None
    notes: tuple[str | Note, ...] = ()


def once(function: Function) -> Function:
    """Let a function of frames compute only once for the same frames and other arguments.

    Pages share most of their work: a figure draws what a table shows. The function takes
    `spat.study.pages.reader.Frames` first, and returns a data frame or a tuple or dict with some.
    Each call gets copies, which share memory until one is changed. `Absent` is raised again, too.
    """

    @wraps(function)
    def cached(frames: Any, *arguments: Any, **keywords: Any) -> Any:
        key = (function, arguments, tuple(sorted(keywords.items())))
        if key not in frames.computed:
            try:
                frames.computed[key] = function(frames, *arguments, **keywords)
            except Absent as absent:
                frames.computed[key] = absent
        result = frames.computed[key]
        if isinstance(result, Absent):
            raise Absent(*result.args)
        return _copied(result)

    return cast(Function, cached)


def _copied(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_copied(part) for part in value)
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return value.copy(deep=False) if hasattr(value, "iloc") else value


# All declared pages; `spat.study.pages.registry` imports every module that declares some.
PAGES: Final[dict[tuple[Kind, str], Page]] = {}


def page(
    kind: Kind,
    name: str,
    *,
    title: str,
    caption: str,
    layout: Layout | None = None,
    notes: tuple[str | Note, ...] = (),
) -> Callable[[Function], Function]:
    """Declare the decorated function as the page `name`. That of a table is computed `once`.

    Raises:
        ValueError: if two pages of a kind have the same name, a table has no layout, or a figure
            has one.
    """
    if (kind, name) in PAGES:
        raise ValueError(f"{kind} {name!r} is declared twice: give the second one another name")
    if (kind == "table") != (layout is not None):
        raise ValueError(f"{kind} {name!r}: a table needs `layout`, and a figure takes none")

    def declare(function: Function) -> Function:
        function = once(function) if kind == "table" else function
        PAGES[kind, name] = Page(kind, name, title, caption, function, layout, notes)
        return function

    return declare


@dataclass(frozen=True)
class Words:
    """The wording of the pages of one task.

    Attributes:
        metrics: The names of the task's metrics in frames, the primary metric first.
        window: Function from a setting to its lookback and horizon. Their sum is the shortest block
            length of the bootstrap.
        forecasts: Whether the task is forecasting, the task of the paper, so that results can be
            compared with the paper.
        hidden: Columns that have no meaning for the task, and that no page shows.
        replaced: (regular expression, replacement) pairs, in the order of application.
    """

    metrics: tuple[str, str]
    window: Callable[[str], Window]
    forecasts: bool = False
    hidden: tuple[str, ...] = ()
    replaced: tuple[tuple[str, str], ...] = ()

    @property
    def columns(self) -> Mapping[str, str]:
        """Names of metrics in the task -> column names of the study."""
        columns: dict[str, str] = {}
        for own, name in zip(self.metrics, ("mse", "mae"), strict=True):
            columns |= {own: name, f"train_{own}": f"train_{name}", f"val_{own}": f"val_{name}"}
        return columns

    def text(self, text: str) -> str:
        """`text` with the terms of forecasting replaced."""
        for pattern, words in self.replaced:
            text = re.sub(pattern, words, text)
        return text

    def page(self, page: Page) -> Page:
        """The page with title, caption, notes and layout in the terms of the task."""
        if not self.replaced:
            return page
        return replace(
            page,
            title=self.text(page.title),
            caption=self.text(page.caption),
            notes=tuple(self._note(note) for note in page.notes),
            layout=page.layout and self._layout(page.layout),
        )

    def table(self, table: pd.DataFrame) -> pd.DataFrame:
        """The tidy table in the terms of the task, without hidden columns."""
        if not self.replaced:
            return table
        table = table.drop(columns=[name for name in self.hidden if name in table])
        for name in table.columns:
            values = table[name]
            if hasattr(values, "cat"):
                table[name] = values.cat.rename_categories(lambda value: self.text(str(value)))
            elif values.map(lambda value: isinstance(value, str)).any():
                table[name] = values.map(lambda v: self.text(v) if isinstance(v, str) else v)
        return table

    def figure(self, figure: Figure) -> Figure:
        """The figure with all its text in the terms of the task.

        A label of an axis that no longer fits the figure is broken into two lines.
        """
        from matplotlib.text import Text

        changed = []
        for shown in figure.findobj(Text) if self.replaced else ():
            assert isinstance(shown, Text)
            if (text := shown.get_text()) != (written := self.text(text)):
                shown.set_text(written)
                changed.append(shown)
        if changed:
            figure.draw_without_rendering()
        for axes in figure.axes if changed else ():
            for label in (axes.xaxis.label, axes.yaxis.label):
                corners = label.get_window_extent().corners()
                if label in changed and figure.bbox.padded(1).count_contains(corners) < 4:
                    label.set_text(_two_lines(label.get_text()))
        return figure

    def _note(self, note: str | Note) -> str | Note:
        if isinstance(note, str):
            return self.text(note)
        return Note(self.text(note.about), self.text(note.text))

    def _layout(self, layout: Layout) -> Layout:
        changed = {
            field.name: tuple(self.text(v) for v in value if v not in self.hidden)
            for field in fields(layout)
            if isinstance(value := getattr(layout, field.name), tuple)
        }
        return replace(layout, **changed)  # type: ignore[arg-type]


def _two_lines(text: str) -> str:
    """The text with the space that is nearest to its middle replaced by a line break."""
    spaces = [i for i, letter in enumerate(text) if letter == " "]
    middle = min(spaces, key=lambda i: abs(i - len(text) / 2), default=len(text))
    return f"{text[:middle]}\n{text[middle + 1 :]}"


def _classified(case: str, plural: str, block: int = 1) -> Words:
    """The wording for a task whose errors are the cross entropy and the error rate of cases.

    Cases do not overlap, so the block length of the bootstrap is free.
    """
    return Words(
        ("cross_entropy", "error_rate"),
        lambda setting: Window(lookback=0, horizon=block),
        hidden=("lookback", "horizon"),
        replaced=(
            (r"^MSE", "Cross entropy"),
            (r"^MAE", "Error rate"),
            (r"MSE", "cross entropy"),
            (r"MAE", "error rate"),
            (r"\ba window\b", case),
            (r"\bwindows\b", plural),
            (r"\bwindow\b", case.partition(" ")[2]),
            (r"seeds first, then horizons, ", "seeds first, then "),
            (r"\(dataset, model, horizon\)", "(dataset, model)"),
            (r"each\s+dataset\s+and\s+horizon", "each dataset"),
            (r"\s+at\s+(their|its)\s+shortest\s+horizon", ""),
            (r"\bone\s+forecast\b", case),
        ),
    )


WORDING: Final[dict[str, Words]] = {
    "forecasting": Words(("mse", "mae"), Window.parse, forecasts=True),
    "imaging": _classified("an image", "images", IMAGES_IN_BLOCK),
    "text": _classified("a sequence", "sequences"),
}
