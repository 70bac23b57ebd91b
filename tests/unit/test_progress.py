"""The display of `make run`: it weighs work, reads logs, and never fails the run."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from snakemake_logger_plugin_spat import LogHandler
from snakemake_logger_plugin_spat.display import Display, Expected, Running, duration
from spat.models.registry import MODELS
from spat.pipeline import expected
from spat.pipeline.checks import checked_plan
from spat.pipeline.config import load_files
from spat.training.loop import _Reporter

ROOT = Path(__file__).parents[2]
NOW = 1000.0


def job(number: int, seconds: float, log: Path | None = None, **others: int) -> Expected:
    return Expected(number, f"rule {number}", (log,) if log else (), seconds, **others)


def display(jobs: list[Expected], monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> Display:
    monkeypatch.setattr("time.time", lambda: NOW)
    return Display(jobs, 2, "tiny", "results/tiny/logs", stream)


def test_a_long_job_weighs_more_than_many_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = display([job(0, 90), *(job(i, 1) for i in range(1, 11))], monkeypatch, io.StringIO())
    for number in range(1, 11):
        shown.begin(number)
        shown.finish(number)
    assert shown.share(NOW) == pytest.approx(0.1)
    shown.begin(0)
    assert shown.share(NOW + 45) == pytest.approx(0.55)


def test_the_time_left_follows_the_measured_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = display([job(0, 50), job(1, 50)], monkeypatch, io.StringIO())
    assert shown.left(NOW) == pytest.approx(50)  # 100 s of work on two cores
    shown.begin(0)
    shown.finish(0)
    twice_as_slow = NOW + 50
    assert 25 < shown.left(twice_as_slow) < 50 + 1


def test_mask_epoch_and_time_left_are_read_from_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    log.write_text("an old log\n" * 100)
    os.utime(log, (0, 0))
    running = Running(job(0, 100, log, networks=4), NOW)
    running.read()
    assert running.last is None and not running.offsets
    row = {"seconds": 2.0, "train_mse": 0.5, "val_mse": 0.5}
    for mask, epochs in (("1.1", (1, 2)), ("1.01", (1,))):
        reporter = _Reporter(f"data/model/l1-h1/seed0 masks/{mask}/order0", 2, 10, "mse")
        for epoch in epochs:
            reporter.epoch({**row, "epoch": epoch})
    log.write_text(capsys.readouterr().err)
    os.utime(log, (NOW, NOW))
    running.read()
    assert running.share(NOW + 30) == pytest.approx((1 + 0.5) / 4)
    assert running.left(NOW + 30) == pytest.approx(50)
    assert running.line(NOW + 30) == (
        "rule 0: mask 1.01 (2 of at most 4), epoch 1/2, about 50 s left"
    )


def test_a_terminal_gets_lines_that_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    shown = display([job(0, 5), job(1, 5)], monkeypatch, stream)
    shown.begin(0)
    shown._draw()
    assert stream.getvalue().count("\n") == 2
    with shown.paused():
        assert stream.getvalue().endswith("\x1b[2F\x1b[J")
    shown.finish(0)
    shown.finish(1)
    assert "100% 2 jobs in" in stream.getvalue()
    shown.stop()
    assert stream.getvalue().endswith("\x1b[J") or stream.getvalue().endswith(" s\n")


def settings(stdout: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        printshellcmds=True, nocolor=True, quiet=set(), debug_dag=False, verbose=False,
        show_failed_logs=True, stdout=stdout, dryrun=False,
    )  # fmt: skip


def record(text: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("snakemake", logging.INFO, "", 0, text, (), None)
    made.__dict__.update(extra)
    return made


def test_a_failure_of_the_display_is_reported_once_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler = LogHandler(settings(), None)  # type: ignore[arg-type]
    handler.stream = handler.plain.stream = stream = io.StringIO()
    handler.expect([job(0, 5)], 1, "tiny", "logs")
    assert "tiny: 1 jobs, about 5 s on one core" in stream.getvalue()

    def spoilt(self: Display, number: int) -> None:
        raise RuntimeError("spoilt on purpose")

    monkeypatch.setattr(Display, "begin", spoilt)
    for _ in range(2):
        handler.emit(record("a job", event="job_info", jobid=0))
    handler.emit(record("an ordinary message"))
    handler.close()
    assert stream.getvalue().count("spoilt on purpose") == 1
    assert "an ordinary message" in stream.getvalue()


def test_every_job_has_an_expected_cost_that_grows_with_its_work() -> None:
    """The default run took 714 seconds of one core where it was measured."""
    config = load_files(ROOT / "config.yaml")
    plan = {planned.run.path: planned for planned in checked_plan(config)}
    path = next(path for path, planned in plan.items() if planned.prune)
    cost = {
        rule: expected.seconds(config, plan, rule, {"run": path})
        for rule in ("pretrain", "prune_sites", "prune", "select", "measure", "transfer")
    }
    assert cost["prune_sites"] > cost["prune"] > cost["pretrain"] > cost["measure"]
    assert cost["measure"] > cost["transfer"] > cost["select"]
    for rule in ("prune_sites", "prune"):
        assert expected.wall(config, plan, rule, {"run": path}, 4) == cost[rule] / 4
    jobs = [(rule, p) for p in plan for rule in cost if rule == "pretrain" or plan[p].prune]
    total = sum(expected.seconds(config, plan, rule, {"run": p}) for rule, p in jobs)
    assert 714 / 1.5 < total < 714 * 1.5
    naive = next(path for path in plan if "RepeatLast" in path)
    assert expected.seconds(config, plan, "pretrain", {"run": naive}) < cost["pretrain"] / 2


def test_jobs_of_the_main_table_and_long_chains_come_first() -> None:
    config = load_files(ROOT / "config.yaml")
    plan = {planned.run.path: planned for planned in checked_plan(config)}

    def priority(rule: str, run: str) -> int:
        return expected.priority(config, plan, rule, {"run": f"{run}/l96-h96/seed0"})

    # The network on ETTh1 is twice as wide.
    long, short = "ETTh1/iTransformer-deep", "ETTh2/iTransformer-deep"
    for rule in ("pretrain", "score", "select", "prune_sites"):
        assert priority(rule, long) > priority(rule, short)
    for run in (long, short):
        chain = [priority(rule, run) for rule in ("pretrain", "score", "prune_sites", "decide")]
        assert chain == sorted(chain, reverse=True) and chain[0] < expected.MAIN
        # These jobs are not part of the main table.
        for rule in ("prune", "measure", "robustness"):
            assert priority(rule, run) < min(chain)
    (pack,) = expected.packs(config, plan)
    seconds = expected.pack_seconds(config, plan, "pretrain", pack)
    assert priority("decide", short) < expected.rank(config, "pretrain", seconds)
    assert expected.rank(config, "transfer", seconds) < priority("decide", short)
    # Without masks of heads, `prune` trains those of the main table.
    quick = load_files(ROOT / "config.yaml", ROOT / "workflow/experiments/quick.yaml")
    plan = {planned.run.path: planned for planned in checked_plan(quick)}
    of = {"run": f"{long}/l96-h96/seed0"}
    assert expected.priority(quick, plan, "prune", of) == priority("prune_sites", long)


def test_short_runs_without_attention_share_jobs_of_bounded_length() -> None:
    config = load_files(ROOT / "config.yaml", ROOT / "workflow/experiments/paper.yaml")
    plan = {planned.run.path: planned for planned in checked_plan(config)}
    packs = expected.packs(config, plan)
    packed = [path for pack in packs for path in pack]
    assert len(packed) == len(set(packed)) > 100 and len(packs) > 3
    cost = {p: expected.seconds(config, plan, "pretrain", {"run": p}) for p in plan}
    for pack in packs:
        assert len(pack) <= expected.PACK_RUNS
        assert expected.pack_seconds(config, plan, "pretrain", pack) < sum(cost[p] for p in pack)
        assert sum(cost[p] - expected.START for p in pack) <= expected.PACK_SECONDS
    for path, planned in plan.items():
        naive = MODELS[planned.run.model].role == "naive"
        assert not naive or path in packed
        assert path not in packed or not planned.prune
    # Wide series take a linear model minutes.
    assert "Traffic/DLinear-published/l96-h720/seed0" not in packed
    # Naive models only take their start-up.
    default = load_files(ROOT / "config.yaml")
    (pack,) = expected.packs(default, {p.run.path: p for p in checked_plan(default)})
    assert len(pack) == 6


def test_the_progress_of_short_runs_is_read_from_the_log_of_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tuple(tmp_path / f"{name}.log" for name in ("short1", "one", "other"))
    for log, epochs in zip(logs[1:], ((1, 2), (1,)), strict=True):
        reporter = _Reporter(f"data/{log.stem}/l1-h1/seed0", 2, 10, "mse")
        for epoch in epochs:
            reporter.epoch({"seconds": 2.0, "train_mse": 0.5, "val_mse": 0.5, "epoch": epoch})
        log.write_text(capsys.readouterr().err)
        os.utime(log, (NOW, NOW))
    running = Running(Expected(0, "pretrain: 4 short runs", logs, 20, networks=4), NOW)
    running.read()
    running.read()
    assert running.share(NOW + 30) == pytest.approx((1 + 0.5) / 4)
    assert running.line(NOW + 30) == (
        "pretrain: 4 short runs: data/other/l1-h1/seed0 (2 of at most 4), epoch 1/2, "
        "about 50 s left"
    )


def test_snakemake_finds_the_plugin_and_the_plugin_does_not_import_spat() -> None:
    code = (
        "import sys; from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry;"
        "assert LoggerPluginRegistry().is_installed('spat');"
        "print(*(n for n in sys.modules if n.split('.')[0] in ('spat', 'torch', 'pandas')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (59, "59 s"), (90, "2 min"), (4800, "1 h 20 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text and re.fullmatch(r"[\dhmins ]+", text)
