"""Declaration of a page: name, title, caption, layout and notes, above its function.

Importing this module loads neither pandas nor matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, Literal, TypeVar, cast

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
    def known(frames: Any, *arguments: Any, **keywords: Any) -> Any:
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

    return cast(Function, known)


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
