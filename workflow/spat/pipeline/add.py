"""add(FILE): the configuration block for a data file."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from spat.data.guess import Guess, guess
from spat.data.registry import DATASETS, Dataset
from spat.pipeline.config import CustomSection

_HEAD = """\
# {name}: {rows} rows x {channels} channels, {first} to {last}
# channels: {names}
{notes}# Put the block into your configuration, and the name into `grid.datasets`.
"""


def add(path: Path) -> str:
    """The YAML block of `data.custom` for a file, with comments that describe its content.

    Separator, decimal point, encoding, the columns of the date, the step and the longest gap are
    guessed, and the whole file is read with these options.

    Raises:
        DataError: if the file is not a table of time stamps and numbers.
    """
    name, keys, guessed = described(path)
    row, series = guessed.dataset, guessed.series
    notes = "".join(f"# {' '.join(note.split())}\n" for note in guessed.notes)
    times = series.times
    head = _HEAD.format(
        name=_in_utf8(path.name),
        rows=row.rows,
        channels=row.channels,
        first="no time stamps" if times is None else times[0],
        last="" if times is None else times[-1],
        names=", ".join(series.names),
        notes=notes,
    )
    # A comment with a control character would make the YAML unreadable.
    head = "".join(char if char.isprintable() or char == "\n" else "?" for char in head)
    block = {"data": {"custom": {name: {**keys, "file": _in_utf8(keys["file"])}}}}
    # Escapes can be printed where the locale is not UTF-8.
    is_utf8 = sys.getfilesystemencoding() == "utf-8"
    return head + yaml.safe_dump(block, sort_keys=False, allow_unicode=is_utf8)


def _in_utf8(path: str) -> str:
    """A path as a configuration, which is UTF-8, has it in any locale."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def described(path: Path) -> tuple[str, dict[str, Any], Guess]:
    """The dataset name of a file, its section of `data.custom`, and the guessed options.

    Raises:
        DataError: see `add`.
    """
    guessed = guess(_name(path), path)
    return guessed.dataset.name, _keys(guessed.dataset), guessed


def _name(path: Path) -> str:
    # The name is used in folders and commands, and must differ from names in the registry.
    stem = re.sub(r"(\.(csv|txt|tsv|gz|xz))+$", "", path.name, flags=re.IGNORECASE)
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-")[:60] or "mine"
    return f"{name}_own" if name in DATASETS else name


def _keys(row: Dataset) -> dict[str, Any]:
    # Only keys that differ from the defaults of the section.
    table, gaps = row.table, row.gaps
    values: dict[str, Any] = {
        "file": row.file,
        "step": row.step,
        "gaps": gaps.rule,
        "gap_limit": gaps.limit or None,
        "date": table.date[0] if len(table.date) == 1 else list(table.date),
        "date_format": table.date_format,
        "drop": list(table.drop),
        "separator": table.separator,
        "decimal": table.decimal,
        "encoding": table.encodings[0].removesuffix("-sig"),
    }
    fields = CustomSection.model_fields
    default = {name: fields[name].default for name in values} | {"date": "date", "drop": []}
    return {name: value for name, value in values.items() if value != default[name]}
