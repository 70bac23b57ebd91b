"""The frames of the committed results, read and computed once for all tests of a process."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

from spat.study.pages.page import WORDING
from spat.study.pages.reader import WIDE, Frames, widened

REFERENCE = Path(__file__).parents[2] / "results" / "reference"

Made = dict[str, pd.DataFrame]


@cache
def wide(folder: Path) -> Made:
    """The committed frames as the study reads them."""
    made = stored(folder)
    return {name: widened(name, made.__getitem__) for name in WIDE if name in {*made, "results"}}


@cache
def stored(folder: Path) -> Made:
    """The committed frames by name."""
    return {
        path.stem: pd.read_parquet(path) for path in sorted((folder / "data").glob("*.parquet"))
    }


@cache
def read(folder: Path) -> Frames:
    """The committed frames, also where one is absent, and the words of their task."""
    made = Frames.of(**wide(folder))
    made.words = WORDING[stored(folder)["networks"]["task"].iloc[0]]
    return made
