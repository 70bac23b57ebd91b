"""The names of all pages, and the functions that write them to files.

Importing this module loads neither pandas nor matplotlib, since the workflow rules import it for
the names.
`python -m spat.study.pages.registry` writes the captions of the report to `workflow/report/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spat import files
from spat.study.pages.page import PAGES, WORDING, Absent, Kind, Note, Page

if TYPE_CHECKING:
    import pandas as pd
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
    "rivals",
)
FIGURES: Final = (
    "forest",
    "by_source",
    "pareto",
    "rivals",
    "reproduction",
    "latency",
    "send_sites",
    "send_heads",
    "send_uniformity",
    "attention_maps",
    "stability",
    "criteria_quality",
    "criteria_changes",
    "sites_removed",
    "critical_difference",
    "heads_vs_modules",
    "controls",
    "robustness",
    "transfer",
    "forecasts",
    "history",
)

_NAMES: Final[dict[Kind, tuple[str, ...]]] = {"table": TABLES, "figure": FIGURES}
# The file endings of each kind of page.
ENDINGS: Final[dict[Kind, tuple[str, ...]]] = {
    "table": ("csv", "md", "tex"),
    "figure": ("png", "pdf", "svg"),
}
# The question that a page answers, as the report groups them.
GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "1. Result": (
        *("main", "hypotheses", "changes", "better", "by_source", "zeroshot"),
        *("reproduction", "rivals"),
        *("forest", "pareto", "transfer", "forecasts"),
    ),
    "2. Cost": ("efficiency", "latency"),
    "3. Is SEND right?": (
        *("criteria", "quality", "quality_cells", "gains", "winner", "adaptive"),
        *("criteria_quality", "criteria_changes", "sites_removed", "critical_difference"),
        *("send_sites", "send_heads", "send_uniformity", "attention_maps"),
    ),
    "4. Controls": ("heads_vs_modules", "controls"),
    "5. Diagnostics": (
        *("replicates", "stability", "precision", "robustness", "leave_one_out", "history"),
    ),
}
_NOT_MADE: Final = "**Tables and figures that these results do not allow**"


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
        controls,
        criteria,
        efficiency,
        gains,
        heads_vs_modules,
        hypotheses,
        precision,
        qualitative,
        quality,
        replicates,
        reproduction,
        robustness,
        send,
        stability,
        transfer,
    )

    return {name: PAGES[kind, name] for name in names}


def rendered(name: str, frames: Frames) -> dict[str, str]:
    """A table as text, by file ending: the endings in `ENDINGS`, and `html`.

    Raises:
        KeyError: if there is no table of that name.
        Absent: if the frames have no data for it.
    """
    from spat.study.pages import render

    page, frame = page_and_table(tables()[name], frames)
    sheet = render.sheet(frame, _layout(page), _notes(page, frames))
    return {
        "csv": frame.to_csv(index=False, float_format="%.10g"),
        "md": render.markdown(sheet, page.title),
        "tex": render.latex(sheet, page.title, name),
        "html": render.html(sheet, page.title),
    }


def plain(name: str, frames: Frames) -> str:
    """A table as plain text for the terminal; if it has no data, the reason.

    Raises:
        KeyError: if there is no table of that name.
    """
    from spat.study.pages import render

    declared = tables()[name]
    try:
        page, frame = page_and_table(declared, frames)
    except Absent as absent:
        return f"{declared.title}\n\n{absent}\n"
    return render.text(render.sheet(frame, _layout(page), _notes(page, frames)), page.title)


def page_and_table(page: Page, frames: Frames) -> tuple[Page, pd.DataFrame]:
    """A table and its page, in the terms of the task.

    Raises:
        Absent: if the frames have no data for it.
    """
    return frames.words.page(page), frames.words.table(page.function(frames))


def _notes(page: Page, frames: Frames) -> tuple[str | Note, ...]:
    """The notes of a table, with the reading of SEND if it is not the printed formula."""
    from spat.study import methods

    reading = methods.spat_criterion(frames.selections)
    if reading == "send":
        return page.notes
    text = f"In these results SEND and the masks of SPAT are those of the criterion `{reading}`."
    return (*page.notes, text if page.name == "send_uniformity" else Note("SPAT", text))


def write_table(name: str, frames: Frames, folder: Path) -> tuple[Path, ...]:
    """Write `<folder>/<name>.csv`, `.md`, `.tex` and `<folder>/html/<name>.html`.

    The HTML file is for Snakemake's report.

    Returns:
        The paths of the files.

    Raises:
        KeyError: if there is no table of that name.
        Absent: if the frames have no data for it.
    """
    paths = []
    for ending, content in rendered(name, frames).items():
        path = (folder / "html" if ending == "html" else folder) / f"{name}.{ending}"
        files.write_text(path, content)
        paths.append(path)
    return tuple(paths)


def draw(name: str, frames: Frames) -> Figure:
    """Draw a figure and return it.

    Raises:
        KeyError: if there is no figure of that name.
        Absent: if the frames have no data for it.
    """
    from matplotlib.text import Text

    from spat.study import methods
    from spat.study.pages import style

    page = figures()[name]
    with style.drawing():
        figure: Figure = page.function(frames)
        reading = methods.spat_criterion(frames.selections)
        if reading != "send" and any("SPAT" in t.get_text() for t in figure.findobj(Text)):
            figure.suptitle(f"SPAT: masks of {reading}", fontsize=7)
        return frames.words.figure(figure)


def write_figure(name: str, frames: Frames, folder: Path) -> tuple[Path, ...]:
    """Write `<folder>/<name>.png`, `.pdf` and `.svg`, and return the paths.

    Raises:
        KeyError: if there is no figure of that name.
        Absent: if the frames have no data for it.
    """
    from spat.study.pages import style

    return style.save(draw(name, frames), folder / name)


def write_all(kind: Kind, frames: Frames, folder: Path) -> None:
    """Write every table or figure that the frames have data for to `folder`.

    A page without data is not written, and files of the same kind from a former run are removed.
    """
    write = write_table if kind == "table" else write_figure
    written: set[Path] = set()
    for name in _NAMES[kind]:
        try:
            written.update(write(name, frames, folder))
        except Absent:
            continue
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*folder.iterdir(), *folder.glob("html/*.html")]:
        if path.suffix[1:] in (*ENDINGS[kind], "html") and path not in written:
            path.unlink()


def not_made(frames: Frames, folder: Path) -> str:
    """The pages that have no file below `folder`, with the reason, as Markdown.

    `folder` is the folder of the experiment, after its `tables/` and `figures/` were written.
    """
    lines = []
    for kind, names in _NAMES.items():
        for name in names:
            if not (folder / f"{kind}s" / f"{name}.{ENDINGS[kind][0]}").exists():
                page = _declared(kind, names)[name]
                try:
                    page.function(frames)
                except Absent as absent:
                    title, reason = map(frames.words.text, (page.title, str(absent)))
                    lines.append(f"| {kind} | `{name}` | {title} | {reason} |")
    if not lines:
        return f"{_NOT_MADE}\n\nEvery table and figure was made.\n"
    head = ["| kind | name | title | why it was not made |", "| --- | --- | --- | --- |"]
    return "\n".join([_NOT_MADE, "", *head, *lines]) + "\n"


def group(name: str) -> str:
    """The group of a page in the report (`GROUPS`).

    Raises:
        KeyError: if no group has a page of that name.
    """
    return {page: title for title, pages in GROUPS.items() for page in pages}[name]


def captions() -> Mapping[str, str]:
    """The captions of the report by file, relative to `workflow/report/`: one file per kind.

    Snakemake takes one caption file for all files of a folder. It is a template that selects the
    caption of the page, in the terms of the task, which is a parameter of the rule.
    """
    return {
        "tables.rst": _template(tables()),
        "figures.rst": _template(figures()),
    }


def _template(pages: Mapping[str, Page]) -> str:
    blocks = [
        f'{{% if snakemake.wildcards.name == "{name}" %}}\n{_by_task(page)}\n{{% endif %}}\n'
        for name, page in pages.items()
    ]
    return "".join(blocks)


def _by_task(page: Page) -> str:
    own = page.caption.strip()
    others = {task: words.page(page).caption.strip() for task, words in WORDING.items()}
    branches = [
        f'{{% {"elif" if i else "if"} snakemake.params.task == "{task}" %}}\n{caption}\n'
        for i, (task, caption) in enumerate(
            (task, caption) for task, caption in others.items() if caption != own
        )
    ]
    return "".join([*branches, f"{{% else %}}\n{own}\n{{% endif %}}"]) if branches else own


def _layout(page: Page) -> Any:
    assert page.layout is not None, page.name
    return page.layout


if __name__ == "__main__":
    for file, caption in captions().items():
        files.write_text(Path(__file__).parents[3] / "report" / file, caption)
