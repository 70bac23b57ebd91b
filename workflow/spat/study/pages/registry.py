"""All pages: their names, and how they are written.

Importing this module loads neither pandas nor matplotlib: the rules of the workflow need the names.
`python -m spat.study.pages.registry` writes the captions of the report to `workflow/report/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spat import files
from spat.study.pages.page import PAGES, Absent, Kind, Page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from spat.study.pages.reader import Frames

# In the order of the report.
TABLES: Final = (
    "main",
    "hypotheses",
    "changes",
    "better",
    "by_source",
    "efficiency",
    "zeroshot",
    "heads_vs_modules",
    "criteria",
    "quality",
    "quality_cells",
    "gains",
    "winner",
    "replicates",
    "stability",
    "send_uniformity",
    "precision",
    "adaptive",
    "robustness",
    "leave_one_out",
    "controls",
    "reproduction",
)
FIGURES: Final = (
    "pareto",
    "latency",
    "send_sites",
    "send_uniformity",
    "stability",
    "criteria_quality",
    "criteria_changes",
    "sites_removed",
    "critical_difference",
    "heads_vs_modules",
    "robustness",
    "transfer",
    "forecasts",
    "history",
)


def tables() -> dict[str, Page]:
    """The tables by name."""
    return _declared("table", TABLES)


def figures() -> dict[str, Page]:
    """The figures by name."""
    return _declared("figure", FIGURES)


def _declared(kind: Kind, names: tuple[str, ...]) -> dict[str, Page]:
    from spat.study import (  # noqa: F401  (each module declares its pages)
        accuracy,
        adaptive,
        by_source,
        controls,
        criteria,
        efficiency,
        forecasts,
        gains,
        heads_vs_modules,
        history,
        hypotheses,
        precision,
        replicates,
        reproduction,
        robustness,
        send_sites,
        send_uniformity,
        stability,
        transfer,
    )

    return {name: PAGES[kind, name] for name in names}


def rendered(name: str, frames: Frames) -> dict[str, str]:
    """A table as text by file ending; a table without data says why.

    Raises:
        KeyError: if there is no table of that name.
    """
    from spat.study.pages import render

    page = tables()[name]
    try:
        frame = page.function(frames)
    except Absent as absent:
        return render.nothing(page.title, str(absent))
    sheet = render.sheet(frame, _layout(page), page.notes)
    return {
        "csv": frame.to_csv(index=False, float_format="%.10g"),
        "md": render.markdown(sheet, page.title),
        "tex": render.latex(sheet, page.title, name),
    }


def plain(name: str, frames: Frames) -> str:
    """A table for the terminal.

    Raises:
        KeyError: if there is no table of that name.
    """
    from spat.study.pages import render

    page = tables()[name]
    try:
        sheet = render.sheet(page.function(frames), _layout(page), page.notes)
    except Absent as absent:
        return f"{page.title}\n\n{absent}\n"
    return render.text(sheet, page.title)


def write_table(name: str, frames: Frames, folder: Path) -> tuple[Path, ...]:
    """Write `<folder>/<name>.csv`, `.md` and `.tex`, and return the paths.

    Raises:
        KeyError: if there is no table of that name.
    """
    paths = []
    for ending, content in rendered(name, frames).items():
        path = folder / f"{name}.{ending}"
        files.write_text(path, content)
        paths.append(path)
    return tuple(paths)


def draw(name: str, frames: Frames) -> Figure:
    """A figure; a figure without data says why.

    Raises:
        KeyError: if there is no figure of that name.
    """
    from spat.study.pages import style

    page = figures()[name]
    with style.drawing():
        try:
            return page.function(frames)  # type: ignore[no-any-return]
        except Absent as absent:
            return style.message(str(absent))


def write_figure(name: str, frames: Frames, folder: Path) -> tuple[Path, ...]:
    """Write `<folder>/<name>.png`, `.pdf` and `.svg`, and return the paths.

    Raises:
        KeyError: if there is no figure of that name.
    """
    from spat.study.pages import style

    return style.save(draw(name, frames), folder / name)


def captions() -> Mapping[str, str]:
    """The captions of the report by file, relative to `workflow/report/`."""
    pages = [*tables().values(), *figures().values()]
    return {f"{page.kind}s/{page.name}.rst": page.caption.strip() + "\n" for page in pages}


def _layout(page: Page) -> Any:
    assert page.layout is not None, page.name
    return page.layout


if __name__ == "__main__":
    for file, caption in captions().items():
        files.write_text(Path(__file__).parents[3] / "report" / file, caption)
