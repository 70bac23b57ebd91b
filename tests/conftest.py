"""Every test computes on one thread, as every job does; the longest tests run first."""

import os
import signal

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# A shell starts background jobs with SIGINT ignored, which processes of the tests would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that run the pipeline: `-n auto` hands a worker one file at a time."""
    items.sort(key=lambda item: item.path.parent.name != "workflow")
