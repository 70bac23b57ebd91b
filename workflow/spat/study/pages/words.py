"""How the study calls what each task calls otherwise, and how its pages write it.

The study was written for forecasts. For every task its wide frames have the primary metric in a
column `mse`, the second one in `mae`, and the setting in `lookback` and `horizon`. The pages of
another task than forecasting are written in the words of that task: all their text passes through
here. Neither pandas nor matplotlib is imported.
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
    """The words of one task.

    Attributes:
        metrics: The names of its metrics in frames, the primary one first.
        window: The lookback and horizon of a setting. The shortest block of a bootstrap is as long
            as both together.
        forecasts: Whether the task is that of the paper, so that its numbers can be compared.
        hidden: Columns of the study that mean nothing for the task, and that no page shows.
        replaced: Regular expressions and the words in their place, in the order of application.
    """

    metrics: tuple[str, str]
    window: Callable[[str], Window]
    forecasts: bool = False
    hidden: tuple[str, ...] = ()
    replaced: tuple[tuple[str, str], ...] = ()

    @property
    def columns(self) -> Mapping[str, str]:
        """The columns of the study by the names of the task."""
        columns: dict[str, str] = {}
        for own, name in zip(self.metrics, ("mse", "mae"), strict=True):
            columns |= {own: name, f"train_{own}": f"train_{name}", f"val_{own}": f"val_{name}"}
        return columns

    def text(self, text: str) -> str:
        """A text of a page."""
        for pattern, words in self.replaced:
            text = re.sub(pattern, words, text)
        return text

    def page(self, page: Page) -> Page:
        """A page with its title, caption, notes and layout in the words of the task."""
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
        """A tidy table of a page, without hidden columns."""
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
        """A figure, all its text replaced."""
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
    """The words of a task whose errors are the cross entropy and the error rate of cases.

    Cases do not overlap, so that a block of the bootstrap may have any length.
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
            (r",\s+some\s+of\s+them\s+at\s+their\s+shortest\s+horizon", ", some of them"),
            (r"\bone\s+forecast\b", case),
        ),
    )


OF_TASK: Final[dict[str, Words]] = {
    "forecasting": Words(("mse", "mae"), Window.parse, forecasts=True),
    "imaging": _classified("an image", "images", IMAGES_IN_BLOCK),
    "text": _classified("a sequence", "sequences"),
}
