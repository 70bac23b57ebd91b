"""The setting of a run, in the form of its task. This module does not import torch."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_WINDOW: Final = re.compile(r"l([1-9][0-9]{0,8})-h([1-9][0-9]{0,8})")
_SIZE: Final = re.compile(r"([1-9][0-9]{0,8})x([1-9][0-9]{0,8})")
_CONTEXT: Final = re.compile(r"c([1-9][0-9]{0,8})")

# A regular expression for the settings of all tasks, without groups.
WRITTEN: Final = "|".join(re.sub(r"[()]", "", form.pattern) for form in (_WINDOW, _SIZE, _CONTEXT))


# Images in a block of the bootstrap. Images do not overlap, so any number is valid; blocks of
# single images would take minutes.
IMAGES_IN_BLOCK: Final = 10


class Window(NamedTuple):
    """The numbers of input steps and of forecast steps of a forecaster, written as ``l96-h96``."""

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
        return cls(*_parsed(text, _WINDOW, "lLOOKBACK-hHORIZON, such as l96-h96"))


class Size(NamedTuple):
    """The height and width of images in pixels, written as ``28x28``."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> Size:
        """The setting of its written form.

        Raises:
            ValueError: naming the text, if it has another form.
        """
        return cls(*_parsed(text, _SIZE, "HEIGHTxWIDTH, such as 28x28"))


class Context(NamedTuple):
    """The number of bytes of the context of a language model, written as ``c64``."""

    bytes: int

    def __str__(self) -> str:
        return f"c{self.bytes}"

    @classmethod
    def parse(cls, text: str) -> Context:
        """The setting of its written form.

        Raises:
            ValueError: naming the text, if it has another form.
        """
        return cls(*_parsed(text, _CONTEXT, "cBYTES, such as c64"))


def _parsed(text: str, form: re.Pattern[str], expected: str) -> tuple[int, ...]:
    if not (written := form.fullmatch(text)):
        raise ValueError(f"setting {text!r}: expected {expected}")
    return tuple(int(number) for number in written.groups())
