"""What jobs ask of the machine."""

from pathlib import Path

from spat import scheduling


def test_a_gpu_is_asked_for_where_jobs_will_use_one(tmp_path: Path) -> None:
    assert scheduling.gpus("auto", tmp_path / "absent") == 0
    assert scheduling.gpus("auto", tmp_path) == 0
    (tmp_path / "0000:01:00.0").mkdir()
    assert scheduling.gpus("auto", tmp_path) == 1
    assert scheduling.gpus("cpu", tmp_path) == 0
    assert scheduling.gpus("cuda", tmp_path / "absent") == 1


def test_masks_share_the_cores_that_runs_do_not_fill() -> None:
    assert scheduling.prune_threads(None, 4) == 1
    assert scheduling.prune_threads(2, 4) == 1
    assert scheduling.prune_threads(16, 4) == 4
    assert scheduling.prune_threads(2, 0) == 2


def test_wide_data_get_more_memory() -> None:
    assert scheduling.memory_mb("ETTh1") < scheduling.memory_mb("Traffic")
