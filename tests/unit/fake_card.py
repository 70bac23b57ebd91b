"""A stand-in for the streams of a card: torch's functions over handles from a pool."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Iterator

import pytest
import torch

from spat.training.device import streams

CARD = torch.device("cuda", 0)


class FakeStream:
    """A stream; two objects with the same handle are the same stream."""

    _deal = itertools.count()

    def __init__(self, device: torch.device | None = None, handle: int | None = None) -> None:
        self.cuda_stream = 1 + next(self._deal) % streams.MOST if handle is None else handle
        self.waited_for: list[FakeStream] = []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FakeStream) and other.cuda_stream == self.cuda_stream

    __hash__ = None  # type: ignore[assignment]

    def wait_stream(self, other: FakeStream) -> None:
        self.waited_for.append(other)


DEFAULT = FakeStream(handle=0)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torch return `FakeStream`s; memory is never short."""
    here = threading.local()

    @contextlib.contextmanager
    def stream(entered: FakeStream) -> Iterator[None]:
        before = current()
        here.stream = entered
        yield
        here.stream = before

    def current(_: torch.device | None = None) -> FakeStream:
        return getattr(here, "stream", DEFAULT)

    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", current)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _: DEFAULT)
    memory(monkeypatch, free=100, reserved=0)
    fresh = functools.cache(streams._process_wide.__wrapped__)
    monkeypatch.setattr(streams, "_process_wide", fresh)


def memory(monkeypatch: pytest.MonkeyPatch, free: int, reserved: int, unused: int = 0) -> list[int]:
    """Set the bytes of the device; return a list that grows when the cache is emptied."""
    emptied: list[int] = []
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: reserved)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free + unused * bool(emptied), 1000))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(unused))
    return emptied
