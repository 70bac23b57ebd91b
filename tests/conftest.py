"""Every test computes on one thread, as every job does; the longest files run first."""

import gc
import os
import signal

import pytest

from spat.pipeline.cli import GARBAGE

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# A shell starts background jobs with SIGINT ignored, which processes of the tests would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Files whose tests share what they compute, and so a process. Any other file is a group of its own.
GROUPS = {
    **dict.fromkeys(("test_reference", "test_findings", "test_webpage"), "committed"),
    **dict.fromkeys(("test_render", "test_figures", "test_tables"), "built"),
}
# The groups that take longest.
LONG = ("built", "committed", "test_one_of_each", "test_models", "test_training")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest groups: `-n auto` hands a process one group at a time."""

    def turn(item: pytest.Item) -> int:
        group = GROUPS.get(item.path.stem, item.path.stem)
        item.add_marker(pytest.mark.xdist_group(group))
        if item.path.parent.name == "workflow":
            return -1
        return LONG.index(group) if group in LONG else len(LONG)

    items.sort(key=turn)


def pytest_collection_finish() -> None:
    """Collect garbage rarely, and never look at what the imports have made: a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE)
