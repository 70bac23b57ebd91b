"""Describe the machine, and measure the rates from which the floors are computed."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spat.pipeline import records


@dataclass(frozen=True)
class Rates:
    """Rates of one core: FLOP/s of large products (2 per multiply-add), bytes/s of a copy."""

    mkl: float
    onednn: float
    bandwidth: float

    @property
    def product(self) -> float:
        """The faster of the two libraries."""
        return max(self.mkl, self.onednn)

    def plain(self) -> dict[str, float]:
        """As JSON, in 10^9 per second."""
        return {
            "mkl_gflops": self.mkl / 1e9,
            "onednn_gflops": self.onednn / 1e9,
            "copy_gb": self.bandwidth / 1e9,
        }


def has_onednn() -> bool:
    """Whether torch can compute a product through oneDNN."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [M, K], b [N, K] -> a b^T through oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")  # type: ignore[no-any-return]


def rates(seconds: float = 0.3) -> Rates:
    """Measure the rates of one core, each for about `seconds`."""
    m, n, k = 2048, 512, 512
    a, b = torch.randn(m, k), torch.randn(n, k)
    transposed, out = b.t().contiguous(), torch.empty(m, n)
    flops = 2.0 * m * n * k
    source = torch.ones(2**25)  # 128 MiB, larger than any cache
    target = torch.empty_like(source)
    return Rates(
        mkl=flops / _shortest(lambda: torch.mm(a, transposed, out=out), seconds),
        onednn=flops / _shortest(lambda: onednn(a, b), seconds) if has_onednn() else 0.0,
        bandwidth=2 * source.nbytes / _shortest(lambda: target.copy_(source), seconds),
    )


def card_rates(device: str, seconds: float = 0.3) -> Rates:
    """Measure the rates of a card in single precision, each for about `seconds`."""
    size = 8192 if device == "cuda" else 256
    a = torch.randn(size, size, device=device)
    target = torch.empty_like(a)

    def awaited(work: Callable[[], Any]) -> Callable[[], None]:
        def finished() -> None:
            work()
            if device == "cuda":
                torch.cuda.synchronize()

        return finished

    product = _shortest(awaited(lambda: torch.mm(a, a, out=target)), seconds, time.perf_counter)
    copy = _shortest(awaited(lambda: target.copy_(a)), seconds, time.perf_counter)
    return Rates(mkl=2.0 * size**3 / product, onednn=0.0, bandwidth=2 * a.nbytes / copy)


def describe() -> dict[str, Any]:
    """Processor, memory, system, versions and threads of this machine."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "versions": records.versions(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": {"ours": 1, "conventional, one core": 1, "conventional, whole machine": cores()},
    }


def cores() -> int:
    """The number of cores that this process may use, which is torch's default for threads."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load() -> float:
    """The load: the mean number of processes that ran or waited in the last minute."""
    return round(os.getloadavg()[0], 2)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    facts = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    name = facts.get("model name", platform.processor())
    return f"{name} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"


def _shortest(
    work: Callable[[], Any], seconds: float, clock: Callable[[], float] = time.process_time
) -> float:
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        begun = clock()
        work()
        times.append(clock() - begun)
    return min(times)
