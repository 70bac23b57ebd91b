"""What jobs ask of the machine."""

import os
from pathlib import Path

import pytest

from spat.pipeline import resources


def test_a_gpu_is_asked_for_where_jobs_will_use_one(tmp_path: Path) -> None:
    assert resources.gpus("auto", tmp_path / "absent") == 0
    assert resources.gpus("auto", tmp_path) == 0
    (tmp_path / "0000:01:00.0").mkdir()
    assert resources.gpus("auto", tmp_path) == 1
    assert resources.gpus("cpu", tmp_path) == 0
    assert resources.gpus("cuda", tmp_path / "absent") == 1


def test_masks_share_the_cores_that_runs_do_not_fill() -> None:
    assert resources.prune_threads(None, 4) == 1
    assert resources.prune_threads(2, 4) == 1
    assert resources.prune_threads(16, 4) == 4
    assert resources.prune_threads(2, 0) == 2


def test_wide_data_get_more_memory() -> None:
    assert resources.memory_mb(7) < resources.memory_mb(862)


def test_cuda_is_prepared_but_for_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "4")
    resources.prepare_cuda()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "4"
