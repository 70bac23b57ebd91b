"""Rendering of tidy tables as Markdown, LaTeX (booktabs), HTML and plain text.

A tidy table has key columns, one column whose values become the columns of the page, and `mean`,
`sd`, `n`, `missing`, `unit`. The best value of a comparison is bold and the second best underlined;
values are compared by the digits that are shown.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import pandas as pd

from spat.models.registry import MODELS
from spat.scoring.names import offered
from spat.study.pages.page import Layout, Note

Style = Literal["best", "second", ""]
GAP: Final = "–"
# The characters that a deviation and an interval start with.
DEVIATION: Final = "±"
INTERVAL: Final = "["
# LaTeX: the number of rows that fit on a page, and the number of columns from which deviations are
# printed below the means.
ROWS_PER_PAGE: Final = 48
STACKED_FROM: Final = 5
# Keys with more characters than this become numbered notes.
LONG: Final = 40

COUNTS: Final = ("parameters", "FLOPs")
CHANGES: Final = ("%", "pp", "tau")
SUFFIXES: Final = {"%": "%", "pp": "pp", "ms": "ms", "MB": "MB"}
# Smaller changes are rounding errors of a sum.
ROUNDING: Final = 1e-9
_PREFIXES: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Cell:
    """A value as text, with its deviation or interval, unit, remark and style."""

    value: str
    spread: str = ""
    suffix: str = ""
    remark: str = ""
    style: Style = ""

    def line(self, marks: Mapping[Style, str]) -> str:
        """The cell on one line, with the value marked by its style: `**0.350** ± 0.002`."""
        marked = marks[self.style] % self.value
        return " ".join(filter(None, (marked, self.spread, self.suffix, self.remark)))

    def escaped(self) -> Cell:
        """The cell with its text escaped for LaTeX."""
        value, spread, suffix = escape(self.value), escape(self.spread), escape(self.suffix)
        return Cell(value, spread, suffix, escape(self.remark), self.style)


@dataclass(frozen=True)
class Sheet:
    """A table in its final layout: header, body (keys and cells of each row), and notes."""

    keys: list[str]
    columns: list[str]
    body: list[tuple[list[str], list[Cell]]]
    notes: list[str]


def number(value: float, unit: str, *, signed: bool = True) -> str:
    """A number as text: errors with three decimals, changes with two and a sign, costs with three
    significant digits."""
    if unit in COUNTS:
        size, prefix = next(((s, p) for s, p in _PREFIXES if abs(value) >= s), (1.0, ""))
        return f"{value / size:.3g} {prefix}".rstrip().replace("-", "−")
    if unit == "":
        return f"{value:.3f}"
    if unit in CHANGES:
        return f"{value:{'+' if signed else ''}.2f}".replace("-", "−")
    return f"{value:.3g}"


def sheet(frame: pd.DataFrame, layout: Layout, notes: Sequence[str | Note] = ()) -> Sheet:
    """Lay out a tidy table; notes that describe its values come before `notes`."""
    constant = [k for k in layout.rows if k not in layout.kept and all_equal(frame[k])]
    keys = [key for key in layout.rows if key not in constant]
    frame, references = _numbered(frame, keys)
    columns = _columns(frame[layout.columns])
    cells = frame.assign(**{layout.columns: frame[layout.columns].astype(str)})
    cells = cells.assign(style=_styles(cells, layout))
    usual = int(cells["n"].max())
    body = []
    for key, row in cells.groupby(list(layout.rows), sort=False, dropna=False, observed=True):
        named = dict(zip(layout.rows, key, strict=True))
        by_column = {cell[layout.columns]: cell for _, cell in row.iterrows()}
        shown = [_cell(by_column.get(column), usual) for column in columns]
        body.append(([str(named[key]) for key in keys], shown))
    spreads = {cell.spread for _, row in body for cell in row}
    texts = [*columns, *(text for key, _ in body for text in key), *spreads]
    given = [
        note if isinstance(note, str) else note.text
        for note in notes
        if isinstance(note, str) or any(note.about in text for text in texts)
    ]
    own = _notes(frame, layout, constant, usual, spreads)
    every = [*own, *given, *_without_send(frame), *references]
    return Sheet(keys, columns, body, every)


def all_equal(values: pd.Series) -> bool:
    """Whether all values of a column are equal."""
    return bool((values == values.iloc[0]).all())


def markdown(sheet: Sheet, heading: str) -> str:
    """The table as GitHub Markdown."""
    marks: dict[Style, str] = {"best": "**%s**", "second": "<ins>%s</ins>", "": "%s"}
    head = [title(key) for key in sheet.keys] + sheet.columns
    rule = ["---"] * len(sheet.keys) + ["---:"] * len(sheet.columns)
    rows = [[*keys, *(cell.line(marks) for cell in cells)] for keys, cells in sheet.body]
    lines = [f"**{heading}**", "", *(_row(row) for row in (head, rule, *rows))]
    return "\n".join([*lines, "", " ".join(sheet.notes)]) + "\n"


def text(sheet: Sheet, heading: str) -> str:
    """The table as plain text: the best value as `*0.350*`, the second best as `_0.350_`."""
    from tabulate import tabulate

    marks: dict[Style, str] = {"best": "*%s*", "second": "_%s_", "": "%s"}
    rows = [[*keys, *(cell.line(marks) for cell in cells)] for keys, cells in sheet.body]
    head = [*map(title, sheet.keys), *sheet.columns]
    align = ["left"] * len(sheet.keys) + ["right"] * len(sheet.columns)
    table = tabulate(rows, head, tablefmt="simple", colalign=align, disable_numparse=True)
    notes = " ".join(sheet.notes)
    notes = notes.replace("bold", "in *stars*").replace("underlined", "_underlined_")
    return "\n".join([heading, "", table, "", *textwrap.wrap(notes, 100)]) + "\n"


_HTML: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ heading }}</title>
<style>
  body { background: #fff; color: #222; font: 14px/1.5 system-ui, sans-serif; margin: 1rem; }
  h1 { font-size: 1.2rem; }
  div { overflow-x: auto; }
  table { border-collapse: collapse; white-space: nowrap; }
  th { border-bottom: 2px solid #222; padding: .2rem .6rem; text-align: left; }
  td { border-bottom: 1px solid #ddd; padding: .2rem .6rem; }
  .value { font-variant-numeric: tabular-nums; text-align: right; }
  .best { font-weight: bold; }
  .second { text-decoration: underline; }
  p { color: #555; max-width: 60rem; }
</style>
</head>
<body>
<h1>{{ heading }}</h1>
<div><table>
<thead><tr>{% for key in keys %}<th>{{ key }}</th>{% endfor %}
{%- for column in columns %}<th class="value">{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for keys, cells in body -%}
<tr>{% for key in keys %}<td>{{ key }}</td>{% endfor %}
{%- for cell in cells %}<td class="value {{ cell.style }}">{{ cell.line(plain) }}</td>
{%- endfor %}</tr>
{% endfor -%}
</tbody></table></div>
<p>{{ notes }}</p>
</body>
</html>
"""


def html(sheet: Sheet, heading: str) -> str:
    """The table as a self-contained HTML page."""
    from jinja2 import Environment

    return (
        Environment(autoescape=True, keep_trailing_newline=True)
        .from_string(_HTML)
        .render(
            heading=heading,
            keys=[title(key) for key in sheet.keys],
            columns=sheet.columns,
            body=sheet.body,
            notes=" ".join(sheet.notes),
            plain={"best": "%s", "second": "%s", "": "%s"},
        )
    )


def latex(sheet: Sheet, heading: str, label: str) -> str:
    """The table as LaTeX: one or more `table*` environments, which need only `booktabs`."""
    stacked = len(sheet.columns) >= STACKED_FROM and any(c.spread for _, r in sheet.body for c in r)
    size = ROWS_PER_PAGE // 2 if stacked else ROWS_PER_PAGE
    parts = [sheet.body[i : i + size] for i in range(0, len(sheet.body), size)]
    made = ["% needs \\usepackage{booktabs}\n"]
    for i, part in enumerate(parts):
        part_of = f" (part {i + 1} of {len(parts)})" if len(parts) > 1 else ""
        caption = escape(f"{heading}{part_of}. " + " ".join(sheet.notes))
        tag = f"tab:{label}" + (f"-{i + 1}" if i else "")
        made.append(_environment(sheet, part, caption, tag, stacked))
    return "\n".join(made)


_SPECIAL: Final = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": r"$-$", "→": r"$\to$", "–": "--", "≤": r"$\le$", "·": r"$\cdot$",
    "\u00a0": "~", "<": r"$<$", ">": r"$>$", "|": r"$|$",
}  # fmt: skip


def escape(value: str) -> str:
    """Plain text escaped for LaTeX."""
    return "".join(_SPECIAL.get(character, character) for character in value)


def _environment(
    sheet: Sheet, body: list[tuple[list[str], list[Cell]]], caption: str, tag: str, stacked: bool
) -> str:
    lines: list[str] = []
    previous = [""] * len(sheet.keys)
    for keys, cells in body:
        fresh = next((i for i, (a, b) in enumerate(zip(keys, previous, strict=True)) if a != b), 0)
        if lines and fresh == 0 and len(sheet.keys) > 1:
            lines.append(r"\addlinespace")
        # A key is left blank if it and all keys before it equal those of the row above.
        shown = ["" if i < fresh else escape(key) for i, key in enumerate(keys)]
        lines += _latex_rows(shown, cells, stacked)
        previous = keys
    head = [escape(title(key)) for key in sheet.keys] + [_stack(c) for c in sheet.columns]
    columns = "l" * len(sheet.keys) + "r" * len(sheet.columns)
    inner = "\n".join(f"    {line}" for line in lines)
    return (
        "\\begin{table*}\n  \\centering\n  \\scriptsize\n  \\setlength{\\tabcolsep}{2pt}\n"
        f"  \\caption{{{caption}}}\n  \\label{{{tag}}}\n"
        f"  \\begin{{tabular}}{{@{{}}{columns}@{{}}}}\n    \\toprule\n"
        f"    {' & '.join(head)} \\\\\n    \\midrule\n{inner}\n    \\bottomrule\n"
        "  \\end{tabular}\n\\end{table*}\n"
    )


def _latex_rows(keys: list[str], cells: list[Cell], stacked: bool) -> list[str]:
    """The LaTeX lines of a row; if `stacked`, deviations are in a second row of smaller print."""
    marks: dict[Style, str] = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
    plain = [cell.escaped() for cell in cells]
    if not (stacked and any(cell.spread for cell in plain)):
        return [" & ".join([*keys, *(cell.line(marks) for cell in plain)]) + r" \\"]
    above = [replace(cell, spread="", remark="").line(marks) for cell in plain]
    below = [f"{cell.spread} {cell.remark}".strip() for cell in plain]
    below = [rf"\tiny {small}" if small else "" for small in below]
    return [
        " & ".join([*keys, *above]) + r" \\",
        " & ".join([*("" for _ in keys), *below]) + r" \\[2pt]",
    ]


def _stack(name: str) -> str:
    """The name of a column, broken into lines if it is long."""
    lines = [
        escape(line)
        for line in textwrap.wrap(
            name.replace(" %", "\u00a0%"), 8, break_on_hyphens=False, break_long_words=False
        )
    ]
    return lines[0] if len(lines) == 1 else r"\shortstack[r]{" + r"\\".join(lines) + "}"


def _numbered(frame: pd.DataFrame, keys: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Replace keys that are too long for a column by numbers, which notes explain."""
    notes = []
    for key in keys:
        texts = frame[key].astype(str)
        if texts.str.len().max() > LONG:
            numbers = {text: f"[{i}]" for i, text in enumerate(texts.unique(), start=1)}
            frame = frame.assign(**{key: texts.map(numbers)})
            notes += [f"{number} {text}." for text, number in numbers.items()]
    return frame, notes


def _columns(values: pd.Series) -> list[str]:
    present = set(values.astype(str))
    if isinstance(values.dtype, pd.CategoricalDtype):
        return [c for c in map(str, values.cat.categories) if c in present]
    return list(dict.fromkeys(values.astype(str)))


def _styles(cells: pd.DataFrame, layout: Layout) -> pd.Series:
    """Styles of the cells of each comparison, by the digits shown.

    A unique best value is `best` and the next one `second`. Several equal best values are all
    `second`. If all values are equal, none has a style.
    """
    styles = pd.Series("", index=cells.index)
    if not layout.best:
        return styles
    rounded = cells["mean"].round(3)
    competes = (cells["unit"] == "") & rounded.notna()
    competes &= ~cells[layout.columns].isin(layout.unranked)
    keys = [*layout.within, layout.columns] if layout.within else list(layout.rows)
    groups = rounded[competes].groupby([cells.loc[competes, key] for key in keys], observed=True)
    ranks = groups.rank(method="dense")
    contested = groups.transform("nunique") > 1
    first = contested & (ranks == 1)
    equal = first.groupby([cells.loc[competes, key] for key in keys], observed=True)
    single = equal.transform("sum") == 1
    styles[ranks[first & single].index] = "best"
    styles[ranks[contested & (ranks == 2) & single].index] = "second"
    styles[ranks[first & ~single].index] = "second"
    return styles


def _cell(row: pd.Series | None, usual: int) -> Cell:
    if row is None or not math.isfinite(row["mean"]):
        return Cell("diverged" if row is not None and row["missing"] else GAP)
    unit, spread, remark = row["unit"], "", ""
    ends = [row["mean"], *(row[k] for k in ("low", "high") if math.isfinite(row.get(k, math.nan)))]
    # A comparison of a method with itself is 0, without a sign or an interval.
    itself = unit in CHANGES and all(abs(end) < ROUNDING for end in ends)
    if itself and not row["sd"] > ROUNDING:
        spread = ""
    elif math.isfinite(row.get("low", math.nan)):
        spread = f"{INTERVAL}{number(row['low'], unit)}, {number(row['high'], unit)}]"
    # Counts and their changes are equal for all seeds, unless seeds chose different masks.
    elif math.isfinite(row["sd"]) and (unit == "" or row["sd"] > ROUNDING):
        spread = f"{DEVIATION} {number(row['sd'], unit, signed=False)}"
    if row["missing"]:
        remark = f"({row['missing']} diverged)"
    elif row["n"] not in (0, usual):
        remark = f"(n={row['n']})"
    value = "0" if itself and not spread else number(row["mean"], unit)
    return Cell(value, spread, SUFFIXES.get(unit, ""), remark, row["style"])


def _notes(
    frame: pd.DataFrame, layout: Layout, constant: list[str], usual: int, spreads: set[str]
) -> list[str]:
    notes = [f"{title(key)}: {frame[key].iloc[0]}." for key in constant]
    intervals = any(INTERVAL in spread for spread in spreads)
    deviations = any(DEVIATION in spread for spread in spreads) and not intervals
    spread = f"mean{' [95 % interval]' * intervals}{' ± standard deviation' * deviations}"
    counted = layout.counted.removesuffix("s") if usual == 1 else layout.counted
    seeds = f"n = {usual} {counted}"
    other = ", unless a cell says otherwise" if (~frame["n"].isin([0, usual])).any() else ""
    values = f"{spread} over {seeds}" if intervals or usual > 1 else seeds
    notes.append(f"Values: {values}{other}.")
    if layout.best:
        group = "comparison down a column" if layout.within else "row"
        notes.append(
            f"The best of a {group} is bold and the second best underlined, by the digits shown; "
            "equal best values are underlined."
        )
    return notes


def _without_send(frame: pd.DataFrame) -> list[str]:
    """A note on the models of a table whose sites have no SEND, if there are any."""
    models = frame["model"].unique() if "model" in frame else ()
    known = [MODELS[name] for name in models if name in MODELS]
    lacking = [m.name for m in known if m.role == "attention" and "send" not in offered(m.views)]
    if not lacking:
        return []
    return [
        f"{', '.join(lacking)}: not all attention sites have weights over keys, so there is no "
        "score by SEND and no mask of SPAT."
    ]


def value(text: str) -> str:
    """The number in a text that `number` wrote, so that texts can be sorted as numbers.

    A text that is not a number is returned unchanged.
    """
    digits, _, prefix = text.replace("−", "-").partition(" ")
    size = {prefix: size for size, prefix in _PREFIXES}.get(prefix, 1.0)
    try:
        return repr(float(digits) * size)
    except ValueError:
        return text


def title(key: str) -> str:
    """The column heading of a key."""
    return key.replace("_", " ").capitalize() if key.islower() else key


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
