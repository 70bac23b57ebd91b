"""The names of metrics and settings in each task, and the wording of pages.

The study is written for forecasting. For every task its wide frames have the primary metric in a
column `mse`, the second metric in `mae`, and the setting in `lookback` and `horizon`. For another
task, `Words` replaces the terms of forecasting in all text of the pages. Importing this module
loads neither pandas nor matplotlib.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final

from spat.study.pages.page import Layout, Note, Page
from spat.tasks.setting import IMAGES_IN_BLOCK, Window

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


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
        """The figure with all its text in the terms of the task."""
        from matplotlib.text import Text

        if self.replaced:
            for shown in figure.findobj(Text):
                assert isinstance(shown, Text)
                if (text := shown.get_text()) != (written := self.text(text)):
                    shown.set_text(written)
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


OF_TASK: Final[dict[str, Words]] = {
    "forecasting": Words(("mse", "mae"), Window.parse, forecasts=True),
    "imaging": _classified("an image", "images", IMAGES_IN_BLOCK),
    "text": _classified("a sequence", "sequences"),
}
