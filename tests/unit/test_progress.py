"""What a run of Snakemake says about itself while it runs."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from spat.pipeline import progress
from spat.pipeline.checks import checked_plan
from spat.pipeline.config import load, read_file
from spat.pipeline.progress import Progress, Work, doing, duration

ROOT = Path(__file__).parents[2]
LOG = """\
ETTh1/PatchTST-deep/l96-h96/seed0 masks/1.1.1.1/order0 epoch 3/3: train mse 0.30, validation mse \
0.68, 900 cases/s, at most 0 s left
ETTh1/PatchTST-deep/l96-h96/seed0 masks/1.0.1.0/order0 epoch 1/3: train mse 0.30, validation mse \
0.68, 900 cases/s, at most 18 s left
"""


@dataclass
class Job:
    """As much of a job of Snakemake as is read."""

    rule: SimpleNamespace
    wildcards: dict[str, str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)


def work(seconds: float, log: Path | None = None, *, finished: bool = False, of: int = 0) -> Work:
    return Work("prune", "run", seconds, log, lambda: finished, of)


def test_a_job_says_which_network_and_epoch_it_is_at(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    job = work(60, log, of=9)
    assert doing(job) == "running"
    log.write_text(LOG)
    expected = "masks/1.0.1.0/order0 (2 of at most 9 networks), epoch 1/3, at most 18 s left of "
    assert doing(job) == expected + "this network"


def test_jobs_count_by_their_expected_work(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text(LOG)
    jobs = [work(300, finished=True), work(600, log), work(100), work(0, finished=True)]
    shown = Progress(jobs, 2, tmp_path, io.StringIO())
    head, line = shown.report(log.stat().st_mtime + 300).splitlines()
    assert "60 % of the work is done (2 of 4 jobs)" in head
    assert line.startswith("  prune run: masks/1.0.1.0")


def test_the_time_left_follows_the_speed_of_the_machine(tmp_path: Path) -> None:
    jobs = [work(1000, finished=True), work(1000)]
    shown = Progress(jobs, 1, tmp_path, io.StringIO())
    assert "about 33 min left" in shown.report(shown._began + 2000)
    assert "about 9 min left" in shown.report(shown._began + 500)


def test_a_log_of_an_earlier_run_is_not_taken_for_a_running_job(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text(LOG)
    shown = Progress([work(60, log)], 1, tmp_path, io.StringIO())
    shown._began += 3600
    assert len(shown.report(shown._began + 10).splitlines()) == 1


def test_an_error_ends_the_reports_and_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY", {False: 0.01})
    stream = io.StringIO()
    broken = Work("prune", "run", 1.0, None, lambda: 1 / 0 > 0)
    shown = Progress([broken], 1, tmp_path, stream)
    shown.start()
    shown._thread.join(10)
    assert not shown._thread.is_alive()
    assert stream.getvalue().count("No more reports of progress: ZeroDivisionError") == 1


def test_the_jobs_of_snakemake_are_those_that_are_left() -> None:
    """The default run took 714 seconds of one core where it was measured."""
    config = load(read_file(ROOT / "config.yaml"), "config.yaml")
    plan = {planned.run.path: planned for planned in checked_plan(config)}
    jobs = [
        Job(SimpleNamespace(name=rule), {"run": path}, [f"logs/{rule}/{path}.log"])
        for rule in ("pretrain", "score", "prune", "measure")
        for path, planned in plan.items()
        if planned.prune or rule == "pretrain"
    ]
    jobs += [Job(SimpleNamespace(name=rule)) for rule in ("collect", "tables", "figures", "all")]
    dag = SimpleNamespace(needrun_jobs=lambda: jobs, finished=lambda job: job.rule.name == "all")
    found = progress.works(config, plan, dag)
    assert len(found) == len(jobs)
    assert [w.finished() for w in found] == [False] * (len(jobs) - 1) + [True]
    assert 714 / 1.5 < sum(w.seconds for w in found) < 714 * 1.5
    pruned = next(w for w in found if w.rule == "prune")
    assert pruned.networks == 9
    assert pruned.seconds == max(w.seconds for w in found)


def test_beginning_and_ending_print_the_plan_once(capsys: pytest.CaptureFixture[str]) -> None:
    config = load(read_file(ROOT / "config.yaml"), "config.yaml")
    dag = SimpleNamespace(
        needrun_jobs=lambda: [Job(SimpleNamespace(name="tables"))], finished=lambda job: False
    )
    progress.begin(config, {}, dag, 2)
    progress.end()
    progress.end()
    assert capsys.readouterr().err == "1 jobs, about 6 s on 2 cores. Logs: results/default/logs\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.2, "4 s"), (89, "89 s"), (240, "4 min"), (9000, "2.5 h")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
