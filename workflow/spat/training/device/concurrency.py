"""Concurrent work: in processes on the cores of a CPU, in threads on a GPU.

A worker is a thread with its own CUDA stream. One small model leaves most of a large GPU idle, and
processes use it in turns; captured steps of several threads run at the same time. Each piece of
work draws its random numbers from its own generators, so that its results do not depend on other
work.
"""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from typing import Final, TypeVar

import torch
from tqdm import tqdm

from spat.training.device import streams

T = TypeVar("T")
Work = Callable[[], None]
# Runs all pieces of work; when all have ended, raises the error of the first one that failed.
Execute = Callable[[Sequence[Work]], None]


def in_turn(works: Sequence[Work]) -> None:
    """Run one piece of work after another, up to the first one that fails."""
    for work in works:
        work()


def executor(device: torch.device, workers: int) -> Execute:
    """Run `workers` pieces of work at a time: in threads on a GPU, in processes on a CPU."""
    if workers < 2:
        return in_turn
    return Workers(device, workers).map if device.type == "cuda" else Processes(workers).map


def require_main() -> None:
    """Check that this is no worker that is importing the script of its parent.

    Raises:
        RuntimeError: if it is one. There, a call that starts workers would wait for its parent.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "worker processes import the script that started them, and this script starts workers "
            'at its import: move the call into a block `if __name__ == "__main__":`, or pass '
            "workers=1"
        )


class Processes:
    """Worker processes that end with their parent process; work must be picklable."""

    def __init__(self, count: int) -> None:
        self.count = count

    def map(self, works: Sequence[Work]) -> None:
        """Run all pieces of work."""
        context = multiprocessing.get_context("spawn")
        count = max(1, min(self.count, len(works)))
        with ProcessPoolExecutor(count, context, initializer=_follow_parent) as pool:
            try:
                # The workers start with the first piece of work, and inherit the blocked signals.
                before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                try:
                    results = [pool.submit(work) for work in works]
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
                _results(results)
            except KeyboardInterrupt:
                # A second Ctrl-C would leave semaphores, which Python warns of.
                handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
                try:
                    # Their files are replaced atomically, and waiting would take hours.
                    for worker in multiprocessing.active_children():
                        worker.kill()
                    pool.shutdown(cancel_futures=True)
                finally:
                    signal.signal(signal.SIGINT, handler)
                raise


def _follow_parent() -> None:
    """End a worker at once if its parent was killed, so that it does not write at the same time as
    the worker of a later job.

    Ctrl-C also reaches the workers; only the parent reports it and ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A multiprocessing lock would be reported as leaked if the worker is killed.
    tqdm.set_lock(threading.RLock())
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


# Seconds for which a full GPU counts as full, so that not all waiting threads query it.
LOOK_AGAIN: Final = 1.0


_here = threading.local()


def is_one_of_several() -> bool:
    """Whether this thread is one of several workers, which share the globals of the process."""
    return getattr(_here, "workers", 1) > 1


class _Worker:
    """A thread and its stream; cuBLAS keeps a workspace for each pair of thread and stream."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._thread = ThreadPoolExecutor(1)

    def do(self, work: Callable[[], T]) -> T:
        """Run a piece of work in the thread, and wait for it."""

        def here() -> T:
            with torch.cuda.stream(self._stream):
                return work()

        return self._thread.submit(here).result()


class Workers:
    """Runs up to `count` pieces of work at a time on one device, fewer if its memory is full.

    A piece of work that runs out of memory is repeated: at once if unused memory can be freed,
    otherwise when other workers have freed memory. Training resumes from its last saved epoch.
    """

    def __init__(self, device: torch.device, count: int) -> None:
        """Create at most `count` workers.

        Raises:
            ValueError: if `count` is below 1, or on CUDA above the number of streams.
        """
        if count < 1:
            raise ValueError(f"{count} workers: give at least one")
        if device.type == "cuda" and count > streams.MOST:
            raise ValueError(
                f"{count} workers: {device} has {streams.MOST} streams, and each worker needs one"
            )
        self.device = device
        self.count = count
        self._running = 0
        self._most = 1  # the largest number that ran at the same time
        self._turn = threading.Condition()
        self._free: list[_Worker] | None = None
        self._full_until = 0.0

    def run(self, work: Callable[[], T]) -> T:
        """Run a piece of work as soon as a worker is free.

        Raises:
            RuntimeError: if its memory exceeds the device even if nothing else runs.
        """
        again = False
        while True:
            with self._turn:
                self._turn.wait_for(self._admits)
                self._running += 1
                self._most = max(self._most, self._running)
            try:
                return self._on_worker(work)
            except Exception as error:
                if not streams.out_of_memory(error):
                    raise
                traceback.clear_frames(error.__traceback__)  # they keep tensors alive
                if again:
                    self._narrow(str(error))
            finally:
                with self._turn:
                    self._running -= 1
                    self._turn.notify_all()
            again = True
            self._give_back()

    def map(self, works: Sequence[Work]) -> None:
        """Run all pieces of work, each in its own thread."""
        self.threads([lambda work=work: self.run(work) for work in works])  # type: ignore[misc]

    def threads(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Run all pieces of work in as many threads as there are workers; return their results."""
        with ThreadPoolExecutor(max(1, min(self.count, len(works)))) as pool:
            try:
                return _results([pool.submit(work) for work in works])
            except KeyboardInterrupt:
                # Threads cannot be interrupted; their files are replaced atomically.
                print(
                    "interrupted. Finished work is kept, and training resumes from its last saved "
                    "epoch: run the same command again to resume",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(130)

    def _admits(self) -> bool:
        if self._running == 0:
            return True
        return self._running < self.count and self._room()

    def _room(self) -> bool:
        """Whether the free memory is at least the average peak memory of a worker."""
        if self.device.type != "cuda":
            return True
        if time.monotonic() < self._full_until:
            return False
        # Reserved memory is counted, since the memory of a captured step is not shared.
        worker = torch.cuda.max_memory_reserved(self.device) / self._most
        if torch.cuda.mem_get_info(self.device)[0] >= worker:
            return True
        self._give_back()
        if torch.cuda.mem_get_info(self.device)[0] >= worker:
            return True
        self._full_until = time.monotonic() + LOOK_AGAIN
        return False

    def _give_back(self) -> None:
        """Free the unused memory that the allocator keeps."""
        gc.collect()  # reference cycles of failed work keep its tensors alive
        if self.device.type == "cuda":
            with streams.between_captures():
                torch.cuda.empty_cache()

    def _narrow(self, problem: str) -> None:
        """Reduce the number of workers, after work ran out of memory twice."""
        with self._turn:
            others = self._running - 1
            if not others:
                raise RuntimeError(
                    f"{self.device}: too little memory for a single run ({problem}): use a device "
                    "with more memory, or set `training.device: cpu`"
                )
            self.count = min(self.count, others)
        print(
            f"{self.device} is full: from now on {self.count} at a time instead of {others + 1}; "
            f"work that did not fit is repeated ({problem.splitlines()[0]})",
            file=sys.stderr,
            flush=True,
        )

    def _on_worker(self, work: Callable[[], T]) -> T:
        count = self.count

        def marked() -> T:
            _here.workers = count
            try:
                return work()
            finally:
                _here.workers = 1

        if self.device.type != "cuda":
            return marked()
        with self._turn:
            if self._free is None:
                self._free = [_Worker(s) for s in streams.distinct(self.device, self.count)]
            free = self._free
            worker = free.pop()
        try:
            return worker.do(marked)
        finally:
            with self._turn:
                free.append(worker)


def _results(futures: Sequence[Future[T]]) -> list[T]:
    wait(futures)
    return [future.result() for future in futures]
