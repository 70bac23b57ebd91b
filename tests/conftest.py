"""Run every test on one thread, as jobs run, and the longest files first."""

import gc
import math
import os
import signal

import pytest

from spat.pipeline.cli import GARBAGE

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# A shell starts background jobs with SIGINT ignored, which processes of the tests would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Files whose tests share computed results run in one process. Any other file is its own group.
GROUPS = {
    **dict.fromkeys(("test_reference", "test_findings", "test_webpage"), "committed"),
    **dict.fromkeys(("test_render", "test_figures", "test_tables"), "built"),
}
# The groups that take longest, in addition to the files of `workflow`. Other files take seconds.
LONG = ("built", "committed", "test_kept_files", "test_one_of_each", "test_models", "test_training")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest groups first, since `-n auto` gives a worker one group at a time."""

    def turn(item: pytest.Item) -> int:
        group = GROUPS.get(item.path.stem, item.path.stem)
        item.add_marker(pytest.mark.xdist_group(group))
        if item.path.parent.name == "workflow":
            return -1
        return LONG.index(group) if group in LONG else len(LONG)

    items.sort(key=turn)


def pytest_collection_finish() -> None:
    """Exempt imported objects from garbage collection, and collect rarely, which saves time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE)


@pytest.fixture(params=["oneDNN", "torch", "both"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The library of products, whichever is faster on this machine; `both` divides them by size."""
    from spat.training.device import kernels

    if request.param != "torch" and not kernels._HAS_ONEDNN:
        pytest.skip("this torch is built without oneDNN")
    least = {"oneDNN": (0, 0), "torch": (math.inf, math.inf), "both": (24, 12)}[request.param]
    monkeypatch.setattr(kernels, "_LEAST", kernels.Least(*least))
    return str(request.param)
