"""The setting of a run, as its task writes and reads it. Imports no torch."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_WRITTEN: Final = re.compile(r"l([1-9][0-9]{0,8})-h([1-9][0-9]{0,8})")


class Window(NamedTuple):
    """How many steps a forecaster reads, and how many it forecasts. Written as ``l96-h96``."""

    lookback: int
    horizon: int

    def __str__(self) -> str:
        return f"l{self.lookback}-h{self.horizon}"

    @classmethod
    def parse(cls, text: str) -> Window:
        """The setting of its written form.

        Raises:
            ValueError: naming the text, if it has another form.
        """
        if not (written := _WRITTEN.fullmatch(text)):
            raise ValueError(f"setting {text!r}: expected lLOOKBACK-hHORIZON, such as l96-h96")
        return cls(int(written[1]), int(written[2]))
