"""Each worker has a stream that nobody else uses; what a full card says is recognised."""

from __future__ import annotations

import pytest
import torch
from fake_card import CARD, DEFAULT, FakeStream, install

from spat.training.device import streams


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


def test_streams_are_distinct_at_every_state_of_the_pool() -> None:
    for _ in range(streams.MOST):
        handles = {stream.cuda_stream for stream in streams.distinct(CARD, 20)}
        assert len(handles) == 20
        FakeStream()  # somebody else takes one


def test_a_lane_keeps_its_stream_and_the_process_gets_one() -> None:
    with streams.on_own(CARD):
        first = torch.cuda.current_stream(CARD)
    assert first != DEFAULT
    with streams.on_own(CARD):
        assert torch.cuda.current_stream(CARD) == first
    assert torch.cuda.current_stream(CARD) == DEFAULT
    worker = FakeStream()
    with torch.cuda.stream(worker), streams.on_own(CARD):  # type: ignore[arg-type]
        assert torch.cuda.current_stream(CARD) is worker


def test_work_on_the_own_stream_is_ordered_with_earlier_and_later_work() -> None:
    DEFAULT.waited_for.clear()
    with streams.on_own(CARD):
        inside: FakeStream = torch.cuda.current_stream(CARD)  # type: ignore[assignment]
        assert inside.waited_for == [DEFAULT]
    assert DEFAULT.waited_for == [inside]


def chained(error: Exception, cause: Exception | None) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (chained(RuntimeError("the capture failed"), torch.OutOfMemoryError("2 GiB")), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (chained(KeyError("mask"), ValueError("out of range")), False),
    ],
)
def test_a_full_card_is_recognised(error: Exception, expected: bool) -> None:
    assert streams.out_of_memory(error) is expected
