"""Concurrent work: as many pieces as requested, fewer if memory is short, the same numbers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from fake_card import CARD, install, memory
from small_models import SHAPE, TASK, generated_splits, sized

from spat.data import series, synthetic
from spat.data.registry import DATASETS
from spat.data.windows import Splits, split
from spat.models.registry import build
from spat.training.device import streams
from spat.training.device.concurrency import Processes, Workers, executor, in_turn
from spat.training.device.kernels import draws_globally
from spat.training.loop import Seeds, Settings, fit, prepare_torch

CPU = torch.device("cpu")


class Gauge:
    """Counts how many pieces run at the same time."""

    def __init__(self) -> None:
        self.now = self.most = self.done = 0
        self._lock = threading.Lock()

    def work(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.02)
        with self._lock:
            self.now -= 1
            self.done += 1


@pytest.mark.parametrize("count", [1, 3])
def test_at_most_as_many_pieces_run_as_there_are_lanes(count: int) -> None:
    gauge = Gauge()
    Workers(CPU, count).map([gauge.work] * 10)
    assert gauge.most == count
    assert gauge.done == 10


def test_all_callers_of_map_share_the_lanes() -> None:
    gauge, workers = Gauge(), Workers(CPU, 2)
    workers.threads([partial(workers.map, [gauge.work] * 4)] * 3)
    assert gauge.most == 2
    assert gauge.done == 12


def test_ctrl_c_ends_worker_processes_without_output(tmp_path: Path) -> None:
    for number, wait in enumerate(("starting", "training")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "work.py").write_text(
            "import sys, time\n"
            "from pathlib import Path\n"
            "from tqdm import tqdm\n"
            "def train(name):\n"
            "    for _ in tqdm(range(100), disable=True):\n"
            "        Path(name).touch()\n"
            "        time.sleep(0.5)\n"
        )
        program = (
            "from functools import partial\n"
            "from work import train\n"
            "from spat.training.device.concurrency import Processes\n"
            "if __name__ == '__main__':\n"
            "    print('begun', flush=True)\n"
            "    try:\n"
            "        Processes(2).map([partial(train, name) for name in 'ab'])\n"
            "    except KeyboardInterrupt:\n"
            "        raise SystemExit(130)\n"
        )
        (folder / "main.py").write_text(program)
        job = subprocess.Popen(
            [sys.executable, "main.py"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert job.stdout is not None and job.stdout.readline() == "begun\n"
        end = time.monotonic() + 120
        while wait == "training" and not ((folder / "a").exists() and (folder / "b").exists()):
            assert time.monotonic() < end and job.poll() is None
            time.sleep(0.05)
        time.sleep(0.3)
        os.killpg(job.pid, signal.SIGINT)  # a terminal also sends the signal to the workers
        shown, _ = job.communicate(timeout=120)
        assert (job.returncode, shown) == (130, "")


def test_zero_lanes_are_refused() -> None:
    with pytest.raises(ValueError, match="0 workers"):
        Workers(CPU, 0)


def hungry(gauge: Gauge, room: int) -> Callable[[], None]:
    """Work that fits a device only with fewer than `room` others."""

    def work() -> None:
        gauge.work()
        with gauge._lock:
            full = gauge.now + 1 > room
        if full:
            gauge.done -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")

    return work


def test_a_full_device_runs_fewer_pieces_and_repeats_those_that_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    gauge, workers = Gauge(), Workers(CPU, 6)
    workers.map([hungry(gauge, room=2)] * 12)
    assert gauge.done == 12
    assert 1 <= workers.count < 6
    shown = capsys.readouterr().err
    assert "cpu is full: from now on" in shown
    assert "Tried to allocate 2 GiB." in shown
    assert "More." not in shown


def test_a_piece_that_does_not_fit_alone_is_an_error() -> None:
    def work() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="too little memory for a single run"):
        Workers(CPU, 3).run(work)


def test_a_failure_is_raised_after_the_others_are_done() -> None:
    gauge = Gauge()

    def fail() -> None:
        raise KeyError("one")

    with pytest.raises(KeyError, match="one"):
        Workers(CPU, 2).map([gauge.work, fail, gauge.work, gauge.work])
    assert gauge.done == 3


def test_a_lane_is_admitted_if_the_card_has_memory_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers = Workers(CARD, 8)
    workers._running = workers._most = 2
    emptied = memory(monkeypatch, free=30, reserved=60)  # 30 a worker
    assert workers._admits()
    assert not emptied
    emptied = memory(monkeypatch, free=20, reserved=60, unused=10)
    assert workers._admits(), "what the allocator keeps unused is given back first"
    assert emptied
    emptied = memory(monkeypatch, free=20, reserved=60, unused=9)
    assert not workers._admits()
    assert not workers._admits()
    assert len(emptied) == 1, "a full card is not asked again at once"
    workers._running = 0
    assert workers._admits(), "one always runs"


def test_no_two_lanes_share_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    workers, taken, lock = Workers(CARD, 6), [], threading.Lock()
    shared: list[int] = []

    def work(seconds: float) -> None:
        mine = torch.cuda.current_stream().cuda_stream
        with lock:
            shared.extend({mine}.intersection(taken))
            taken.append(mine)
        torch.cuda.Stream()  # other code takes a stream from the pool
        time.sleep(seconds)
        with lock:
            taken.remove(mine)

    # While two pieces run, the others use all streams of torch's pool.
    workers.map([partial(work, 0.1)] * 2 + [partial(work, 0.001)] * 100)
    assert shared == []


def test_a_stream_is_always_used_by_the_same_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    workers, pairs = Workers(CARD, 4), set()

    def work() -> None:
        pairs.add((torch.cuda.current_stream().cuda_stream, threading.get_ident()))
        time.sleep(0.001)

    workers.threads([partial(workers.map, [work] * 10)] * 4)
    assert len(pairs) <= 4


def test_a_piece_that_ran_out_of_memory_once_is_repeated_with_as_many_workers() -> None:
    workers, tried = Workers(CPU, 3), []

    def work() -> str:
        tried.append(1)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert workers.run(work) == "done"
    assert workers.count == 3


def test_more_lanes_than_streams_are_refused() -> None:
    assert Workers(CARD, streams.MOST).count == 32
    with pytest.raises(ValueError, match="33 workers: cuda:0 has 32 streams"):
        Workers(CARD, 33)


def test_an_executor_suits_its_device() -> None:
    assert executor(CPU, 1) is in_turn
    processes = executor(CPU, 4)
    assert isinstance(getattr(processes, "__self__", None), Processes)
    workers = executor(torch.device("cuda"), 4)
    assert isinstance(getattr(workers, "__self__", None), Workers)


@pytest.fixture(scope="module")
def splits() -> Splits:
    prepare_torch("float32")
    return generated_splits(400)


def trained(splits: Splits, folder: Path, seed: int) -> dict[str, torch.Tensor]:
    """Weights after two epochs with dropout, through a state file."""
    prepare_torch("float32")
    model = build("PatchTST", sized("PatchTST", dropout=0.1), SHAPE, seed).to(splits.train.device)
    settings = Settings(learning_rate=1e-3, batch_size=32, epochs=2)
    fit(model, TASK, splits, settings, Seeds(seed, seed), state=folder / f"{seed}.pt")
    return model.state_dict()


def test_concurrent_training_gives_the_same_weights_as_training_alone(
    splits: Splits, tmp_path: Path
) -> None:
    work = [partial(trained, splits, tmp_path, seed) for seed in range(3)]
    sequential = [piece() for piece in work]
    for state in tmp_path.iterdir():
        state.unlink()
    workers = Workers(CPU, 3)
    concurrent = workers.threads([partial(workers.run, piece) for piece in work])
    for expected, weights in zip(sequential, concurrent, strict=True):
        assert expected.keys() == weights.keys()
        assert all(torch.equal(expected[name], weights[name]) for name in expected)


def test_a_model_built_in_another_thread_does_not_count_as_randomness_of_this_thread() -> None:
    model = build("PatchTST", sized("PatchTST", dropout=0.1), SHAPE)
    batch = TASK.example(SHAPE, 2)
    ended = threading.Event()

    def building() -> None:
        while not ended.is_set():
            build("PatchTST", sized("PatchTST"), SHAPE)

    thread = threading.Thread(target=building)
    thread.start()
    try:
        drawn = [draws_globally(model, lambda: TASK.forward(model, batch), CPU) for _ in range(50)]
    finally:
        ended.set()
        thread.join()
    assert not any(drawn)


@pytest.mark.cuda
def test_captured_steps_replay_concurrently(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("streams need a CUDA device")
    content = synthetic.generate(400, SHAPE.channels, seed=3, coupling=0.5, noise=0.2)
    prepared = series.prepare(DATASETS["synthetic"], content, "test")
    on_card = split(prepared, SHAPE.lookback, SHAPE.horizon, device="cuda")
    # More pieces than torch has streams.
    work = [partial(trained, on_card, tmp_path, seed) for seed in range(40)]
    sequential = [piece() for piece in work]
    for state in tmp_path.iterdir():
        state.unlink()
    workers = Workers(torch.device("cuda"), 8)
    concurrent = workers.threads([partial(workers.run, piece) for piece in work])
    for expected, weights in zip(sequential, concurrent, strict=True):
        for name in expected:
            torch.testing.assert_close(weights[name], expected[name])
