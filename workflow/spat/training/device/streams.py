"""CUDA streams with a single owner, and the capture of graphs on them.

torch returns 32 different streams and then the first one again. If two threads used one stream, a
capture would record the work of both; and graphs captured on one stream share the workspace of
cuBLAS, so that their replays must not overlap. So training runs on a stream that no other thread
uses: the stream of its worker, or that of the process.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator

import torch

# The streams of a device and priority, `kStreamsPerPool` of c10/cuda/CUDAStream.cpp.
MOST = 32

_CAPTURING = threading.Lock()


def distinct(device: torch.device, count: int) -> list[torch.cuda.Stream]:
    """`count` different streams, at most `MOST`."""
    streams: dict[int, torch.cuda.Stream] = {}
    while len(streams) < count:
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        streams.setdefault(stream.cuda_stream, stream)
    return list(streams.values())


@contextlib.contextmanager
def on_own(device: torch.device) -> Iterator[None]:
    """Context manager: use the stream of this thread's worker, or that of the process without one.

    The default stream cannot be captured.
    """
    outside = torch.cuda.current_stream(device)
    if outside != torch.cuda.default_stream(device):
        yield
        return
    inside = _process_wide(device)
    inside.wait_stream(outside)
    try:
        with torch.cuda.stream(inside):
            yield
    finally:
        outside.wait_stream(inside)


@functools.cache
def _process_wide(device: torch.device) -> torch.cuda.Stream:
    return distinct(device, 1)[0]


@contextlib.contextmanager
def capturing(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """Context manager: capture the work of this thread's stream in `graph`.

    Other threads continue on their streams. CUDA allows one capture at a time. `torch.cuda.graph`
    would wait for all streams and empty the cache of all workers at each capture; here the cache is
    emptied only if memory is short.
    """
    with _CAPTURING:
        free, total = torch.cuda.mem_get_info()
        if free < total // 4:
            torch.cuda.empty_cache()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            yield
        finally:
            graph.capture_end()


@contextlib.contextmanager
def between_captures() -> Iterator[None]:
    """Context manager during which no capture runs.

    Memory of the allocator may be freed, and a graph destroyed, only in this context: both change
    data that a capture reads at its start, and torch does not lock them.
    """
    with _CAPTURING:
        yield


def out_of_memory(error: BaseException | None) -> bool:
    """Whether a full device caused `error`, whichever library reported it."""
    while error is not None:
        message = str(error)
        if isinstance(error, torch.OutOfMemoryError) or any(sign in message for sign in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


# Messages of libraries that do not allocate through torch: cuBLAS for its handle, CUDA for a graph.
_FULL = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDA error: out of memory",
)
