"""Every test computes on one thread, as every job does; the longest files run first."""

import os
import signal

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# A shell starts background jobs with SIGINT ignored, which processes of the tests would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


# The files that take longest, beside those of `workflow`; all others take seconds.
LONG = (
    *("test_one_of_each", "test_reference", "test_figures", "test_findings", "test_render"),
    *("test_tables", "test_webpage", "test_models", "test_training"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: `-n auto` hands a worker one file at a time."""

    def turn(item: pytest.Item) -> int:
        if item.path.parent.name == "workflow":
            return -1
        return LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG)

    items.sort(key=turn)
