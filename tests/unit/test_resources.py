"""The resources that jobs request."""

import os
from pathlib import Path

import pytest

from spat.models.registry import MODELS
from spat.pipeline import resources


def test_jobs_request_a_gpu_only_if_they_use_one(tmp_path: Path) -> None:
    assert resources.gpus("auto", "PatchTST", cards=tmp_path / "absent") == 0
    assert resources.gpus("auto", "PatchTST", cards=tmp_path) == 0
    (tmp_path / "0000:01:00.0").mkdir()
    assert resources.gpus("auto", "PatchTST", cards=tmp_path) == 1
    assert resources.gpus("cpu", "PatchTST", cards=tmp_path) == 0
    assert resources.gpus("cuda", "PatchTST", cards=tmp_path / "absent") == 1


@pytest.mark.parametrize("model", MODELS)
def test_on_a_cluster_linear_and_naive_models_get_no_gpu_and_share_jobs(model: str) -> None:
    light = model in (
        *("DLinear", "NLinear", "RLinear", "SparseTSF", "SparseTSFMLP", "FITS"),
        *("RepeatLast", "SeasonalNaive"),
    )
    assert resources.gpus("auto", model, on_cluster=True) == (not light)
    assert resources.gpus("cpu", model, on_cluster=True) == 0
    assert resources.gpus("cuda", model, on_cluster=True) == 1
    assert resources.group(model) == ("light" if light else "run")
    assert (resources.memory_mb(862, model) < 5000) == light


def test_masks_share_the_cores_that_runs_do_not_fill() -> None:
    assert resources.prune_threads(None, 4) == 1
    assert resources.prune_threads(2, 4) == 1
    assert resources.prune_threads(16, 4) == 4
    assert resources.prune_threads(2, 0) == 2


def test_a_run_with_most_of_the_work_gets_more_cores() -> None:
    # The second core would be idle for half of the time.
    assert resources.prune_threads(2, 2, share=0.77) == 2
    assert resources.prune_threads(2, 2, share=0.23) == 1
    assert resources.prune_threads(16, 2, share=0.75) == 12
    # Otherwise all cores have work.
    assert resources.prune_threads(2, 2, share=0.5) == 1
    assert resources.prune_threads(2, 4, share=0.4) == 1
    assert resources.prune_threads(16, 4, share=0.25) == 4
    assert resources.prune_threads(None, 1, share=1.0) == 1


def test_wide_data_get_more_memory() -> None:
    assert resources.memory_mb(7) < resources.memory_mb(862)


def test_cuda_is_prepared_except_variables_set_by_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "4")
    resources.prepare_cuda()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "4"
