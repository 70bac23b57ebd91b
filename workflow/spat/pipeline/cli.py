"""``python -m spat``: one subcommand per stage, so that each job can be run by hand."""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import io
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spat.pipeline.config import Config
    from spat.pipeline.runs import Planned, Run

Command = Callable[["Config", argparse.Namespace], int | None]

# Full garbage collections are ten times rarer than by default: imports create 400,000 permanent
# objects, and checking them repeatedly took a fifth of the time of imports.
GARBAGE = (700, 10, 100)

DEBUG = "show the traceback of a failure"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    A failure writes one message to stderr and returns 1 (130 on Ctrl-C). With `--debug` the
    exception is raised.
    """
    gc.set_threshold(*GARBAGE)
    # Python has no stream for a descriptor that was closed before the start (`>&-`).
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or sys.stdout
    for stream in (sys.stdout, sys.stderr):
        # A locale without UTF-8 lacks some characters. This fails on a stream whose descriptor was
        # replaced by a pipe after Python opened it.
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):
                stream.reconfigure(errors="replace")
    parser = _parser()
    options = parser.parse_args(arguments)
    for name, value in vars(options).items():
        if value == []:  # argparse drops the value of `--run=--`
            parser.error(f"--{name}: expected a value, not '--'")
    if options.stage in JOBS and os.getenv("SPAT_JOB"):
        # In a job of Snakemake: the first line of its log is the command that runs it again.
        words = sys.argv[1:] if arguments is None else arguments
        print(shlex.join(["python", "-m", "spat", *words]), file=sys.stderr, flush=True)
    try:
        done = _run(options)
        sys.stdout.flush()
        return done
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has ended
        sys.stdout = None  # it cannot be flushed at the exit
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if options.debug:
            raise
        from spat.pipeline.failures import INTERRUPTED, explain

        interrupted = isinstance(error, KeyboardInterrupt)
        if interrupted and arguments is None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would break the exit
        message = INTERRUPTED if interrupted else explain(error)
        print(f"spat {options.stage}: {message}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # such as a full disk, which the message above names
            sys.stdout = None  # it cannot be flushed at the exit
        return 130 if interrupted else 1


def _require_one_package() -> None:
    """The package is that of the working directory, if this is a checkout of the project.

    Raises:
        ValueError: naming both packages, if not.
    """
    here, own = Path("workflow", "spat").absolute(), Path(__file__).parents[1]
    if Path("Snakefile").is_file() and (here / "__init__.py").is_file() and not here.samefile(own):
        raise ValueError(
            f"this folder has the package {here}, but Python has loaded that of {own}: run "
            f"`pip install --no-deps -e .` here, or set PYTHONPATH={here.parent}"
        )


def _run(options: argparse.Namespace) -> int:
    _require_one_package()
    if options.command in (
        _schema,
        _models,
        _add_file,
        _advise,
    ):  # these commands need no configuration
        return options.command(options) or 0
    from spat.pipeline import resources
    from spat.pipeline.config import load_files

    resources.prepare_cuda()
    return options.command(load_files(*options.config), options) or 0


def _download(config: Config, options: argparse.Namespace) -> None:
    from spat.pipeline.stages.download import download

    for path in download(config, _dataset(config, options.dataset), options.file):
        print(path)


def _prepare(config: Config, options: argparse.Namespace) -> None:
    from spat.pipeline.stages.prepare import prepare

    print(prepare(config, _dataset(config, options.dataset)))


def _dataset(config: Config, name: str) -> str:
    from spat.pipeline import checks, datasets

    if name not in (valid := datasets.names(config)):
        raise ValueError(f"--dataset {name!r} is not one of {', '.join(valid)}")
    checks.require_folders(config, [name])
    return name


def _planned(config: Config, path: str) -> Planned:
    return _several(config, [path])[0]


def _several(config: Config, paths: Sequence[str]) -> list[Planned]:
    from spat.pipeline import runs
    from spat.pipeline.checks import checked_plan

    wanted = [runs.Run.parse(path) for path in paths]
    plan = {planned.run: planned for planned in checked_plan(config)}
    for run in wanted:
        if run not in plan:
            raise ValueError(
                f"run {run.path!r} is not in the grid of experiment {config.experiment!r}"
            )
    return [plan[run] for run in wanted]


def _in_turn(options: argparse.Namespace, jobs: Mapping[str, Callable[[], None]]) -> None:
    """Do the jobs of several runs in one process; a failed job does not stop the others.

    With `--logs` each job has its own log, as if it ran alone.

    Raises:
        RuntimeError: naming the failed jobs, after all jobs; if there is only one job, its error is
            raised.
    """
    from spat.pipeline.failures import explain

    failed: dict[str, Exception] = {}
    for name, job in jobs.items():
        try:
            with _log(options, name) if options.logs else contextlib.nullcontext():
                job()
        except Exception as error:
            if len(jobs) == 1 or options.debug:
                raise
            failed[name] = error
        if options.logs:
            print(f"{name}: {'failed' if name in failed else 'done'}", file=sys.stderr, flush=True)
    if failed:
        reasons = "\n".join(f"{name}: {explain(error)}" for name, error in failed.items())
        raise RuntimeError(
            f"{len(failed)} of {len(jobs)} failed. The others are kept: the same command repeats "
            f"only the failed ones\n{reasons}"
        ) from next(iter(failed.values()))


@contextlib.contextmanager
def _log(options: argparse.Namespace, name: str) -> Iterator[None]:
    """Context manager: redirect output to `<logs>/<name>.log`, which starts with the command."""
    from spat.pipeline.failures import explain

    path = options.logs / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    target = ["--target", options.target or Path(name).name] if options.stage == "transfer" else []
    run = Path(name).parent.as_posix() if target else name
    files = map(str, options.config)
    command = ["python", "-m", "spat", options.stage, "--config", *files, "--run", run, *target]
    streams = (sys.stdout, sys.stderr)
    with path.open("w", encoding="utf-8") as file:
        kept = [os.dup(stream.fileno()) for stream in streams]
        try:
            for stream in streams:
                stream.flush()
                os.dup2(file.fileno(), stream.fileno())
            print(shlex.join(command), file=sys.stderr, flush=True)
            try:
                yield
            except Exception as error:
                print(f"spat {options.stage}: {explain(error)}", file=sys.stderr)
                raise
        finally:
            for stream, before in zip(streams, kept, strict=True):
                stream.flush()
                os.dup2(before, stream.fileno())
                os.close(before)


def _pretrain(config: Config, options: argparse.Namespace) -> None:
    chosen = [planned.run for planned in _several(config, options.run)]
    _in_turn(options, {run.path: partial(_pretrain_one, config, run) for run in chosen})


def _pretrain_one(config: Config, run: Run) -> None:
    from spat.pipeline.stages.pretrain import pretrain

    pretrain(config, run)
    if config.tracking.enabled:
        from spat.pipeline.stages.report import loss_curves

        loss_curves(config, run)
    _track(config, "pretrain", run)


def _score(config: Config, options: argparse.Namespace) -> None:
    from spat.pipeline.stages.score import score

    run = _planned(config, options.run).run
    score(config, run)
    _track(config, "score", run)


def _select(config: Config, options: argparse.Namespace) -> None:
    from spat.pipeline.stages.select import select

    select(config, _planned(config, options.run).run)


def _prune(config: Config, options: argparse.Namespace) -> None:
    from spat.pipeline.stages.prune import prune
    from spat.training.device.concurrency import executor
    from spat.training.loop import choose_device

    if options.workers < 1:
        raise ValueError(f"--workers {options.workers}: give at least 1")
    planned = _planned(config, options.run)
    device = choose_device(config.training.device)
    workers = executor(device, options.workers)
    prune(config, planned.run, planned.orders, workers, only_sites=options.only_sites)
    if not options.only_sites:
        _track(config, "prune", planned.run)


def _robustness(config: Config, options: argparse.Namespace) -> None:
    from spat.pipeline.stages.robustness import robustness

    run = _planned(config, options.run).run
    robustness(config, run)
    _track(config, "robustness", run)


def _decide(config: Config, options: argparse.Namespace) -> None:
    from spat.pipeline.stages.decide import decide

    decide(config, _planned(config, options.run).run)


def _measure(config: Config, options: argparse.Namespace) -> None:
    from spat.pipeline.stages.measure import measure

    run = _planned(config, options.run).run
    measure(config, run)
    _track(config, "measure", run)


def _transfer(config: Config, options: argparse.Namespace) -> None:
    from spat.pipeline import runs

    jobs: dict[str, Callable[[], None]] = {}
    for planned in _several(config, options.run):
        valid = runs.targets(config, planned.run)
        if options.target is not None and options.target not in valid:
            raise ValueError(
                f"--target {options.target!r} is not a target of {planned.run.path} in "
                f"transfer.pairs: expected one of {', '.join(valid) or 'none'}"
            )
        for target in valid if options.target is None else [options.target]:
            job = partial(_transfer_one, config, planned, target)
            jobs[f"{planned.run.path}/{target}"] = job
    _in_turn(options, jobs)


def _transfer_one(config: Config, planned: Planned, target: str) -> None:
    from spat.pipeline.stages.transfer import transfer

    transfer(config, planned, target)
    _track(config, f"transfer/{target}", planned.run)


def _main(config: Config, options: argparse.Namespace) -> None:
    from spat.pipeline.stages.main import main

    print(main(config))


def _collect(config: Config, options: argparse.Namespace) -> None:
    from spat.pipeline.stages.collect import collect

    collect(config, finished=options.finished)


def _tables(config: Config, options: argparse.Namespace) -> None:
    from spat.pipeline.stages.report import tables

    tables(config)


def _figures(config: Config, options: argparse.Namespace) -> None:
    from spat.pipeline.stages.report import figures

    figures(config)


def _page(config: Config, options: argparse.Namespace) -> None:
    from spat.pipeline.stages.report import page

    print(page(config, options.folder))


def _folder(config: Config, options: argparse.Namespace) -> None:
    print(config.folder)


def _summary(config: Config, options: argparse.Namespace) -> None:
    from spat.pipeline import tracking
    from spat.pipeline.stages.report import summary

    tracking.log_report(config)
    print(summary(config))


def _preflight(config: Config, options: argparse.Namespace) -> None:
    from spat.pipeline.stages.preflight import preflight

    arguments, notice = preflight(config)
    if notice:
        print(notice, file=sys.stderr)
    print(arguments)


def _grid(config: Config, options: argparse.Namespace) -> None:
    from spat.pipeline.stages.grid import grid
    from spat.pipeline.stages.report import table_so_far

    whole = grid(config, options.runs, options.minutes, options.concurrency)
    if whole:
        print(f"{table_so_far(config)}\n")
    print(f"{whole} runs are complete")


def _rebuild(config: Config, options: argparse.Namespace) -> None:
    from spat.pipeline import tracking

    print(f"{tracking.rebuild(config)} MLflow runs were written")


def _schema(options: argparse.Namespace) -> None:
    from spat.pipeline.config import Config

    print(json.dumps(Config.model_json_schema(), indent=1))


def _models(options: argparse.Namespace) -> None:
    from spat.models.overview import COLUMNS, overview

    rows = list(overview(options.dataset, options.horizon, options.lookback))
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _add_file(options: argparse.Namespace) -> None:
    from spat.pipeline.add import add

    print(add(options.file), end="")


def _advise(options: argparse.Namespace) -> None:
    from spat.pipeline import resources
    from spat.pipeline.advise import advise

    resources.prepare_cuda()
    wanted = ("horizon", "lookback", "out", "model", "epochs", "finetune_epochs", "workers")
    given = {name: getattr(options, name) for name in wanted if getattr(options, name) is not None}
    advice = advise(options.file, **given)
    print(f"\n{advice}\n\nTable, picture and forecasters are in {advice.folder}")


def _track(config: Config, stage: str, run: Run) -> None:
    """Log to MLflow after the work; an error of MLflow does not fail the job."""
    if config.tracking.enabled:
        from spat.pipeline import tracking

        tracking.log(config, run, stage)


STAGES: dict[str, tuple[Command, str, tuple[str, ...]]] = {
    "download": (_download, "download the verified files of a dataset", ("dataset", "file")),
    "prepare": (_prepare, "parse, check, split and standardise a dataset", ("dataset",)),
    "pretrain": (_pretrain, "train the dense baseline of each run", ("each", "logs")),
    "score": (_score, "score the attention of a run by every criterion", ("run",)),
    "select": (_select, "choose masks by the scores", ("run",)),
    "prune": (
        _prune,
        "prune and fine-tune every distinct mask of a run",
        ("run", "workers", "sites"),
    ),
    "robustness": (_robustness, "manipulate one site of a run at a time", ("run",)),
    "decide": (_decide, "choose among the trained masks by validation", ("run",)),
    "measure": (_measure, "time the pruned networks of a run", ("run",)),
    "transfer": (
        _transfer,
        "evaluate each run zero-shot on other datasets",
        ("each", "targets", "logs"),
    ),
    "main": (_main, "write the main table, main.md, once all networks are trained", ()),
    "collect": (_collect, "collect the files of all runs into tidy frames", ("finished",)),
    "tables": (_tables, "write the tables from the frames", ()),
    "figures": (_figures, "draw the figures from the frames", ()),
    "page": (_page, "write the results as one web page, index.html", ("folder",)),
    "folder": (_folder, "print the folder of the experiment", ()),
    "summary": (_summary, "print the main table and the folders of the results", ()),
    "preflight": (_preflight, "print the arguments that make the default run possible", ()),
    "grid": (
        _grid,
        "run all stages of several runs in one process",
        ("runs", "minutes", "concurrency"),
    ),
    "track": (_rebuild, "rebuild the tracking store from the files", ()),
}
# The stages that Snakemake runs as jobs.
JOBS = tuple(STAGES)[: tuple(STAGES).index("figures") + 1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spat", description="Benchmark of sensitivity-based attention pruning (SPAT)."
    )
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, (command, text, wanted) in STAGES.items():
        stage = stages.add_parser(name, help=text, description=text)
        stage.set_defaults(command=command)
        stage.add_argument(
            "--config",
            type=Path,
            nargs="+",
            default=[Path("config.yaml")],
            metavar="FILE",
            help="YAML files, each merged over the one before it (default: config.yaml)",
        )
        stage.add_argument("--debug", action="store_true", help=DEBUG)
        for option in wanted:
            _add(stage, option)
    schema = stages.add_parser("schema", help="print the JSON schema of the configuration")
    schema.set_defaults(command=_schema)
    schema.add_argument("--debug", action="store_true", help=DEBUG)
    models = stages.add_parser("models", help="print the models, their settings and costs as CSV")
    models.add_argument("--dataset", required=True)
    models.add_argument("--horizon", type=int, required=True)
    models.add_argument("--lookback", type=int, help="default: the dataset's own")
    models.add_argument("--debug", action="store_true", help=DEBUG)
    models.set_defaults(command=_models)
    text = "print the configuration block for a data file"
    add = stages.add_parser("add", help=text, description=text)
    add.set_defaults(command=_add_file)
    add.add_argument("--debug", action="store_true", help=DEBUG)
    add.add_argument("file", type=Path, help="delimited text with a header and time stamps")
    _add_advise(stages)
    return parser


def _add_advise(stages: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "train on a data file and advise whether attention can be removed"
    advise = stages.add_parser("advise", help=text, description=text)
    advise.set_defaults(command=_advise)
    advise.add_argument("--debug", action="store_true", help=DEBUG)
    advise.add_argument("file", type=Path, help="delimited text with a header and time stamps")
    advise.add_argument("--horizon", type=int, required=True, help="number of rows to forecast")
    advise.add_argument("--lookback", type=int, help="number of input rows of a forecast (96)")
    advise.add_argument("--out", type=Path, metavar="FOLDER", help="default: advice/NAME")
    advise.add_argument("--model", help="the Transformer (iTransformer)")
    advise.add_argument("--epochs", type=int, help="maximum number of epochs of pre-training")
    advise.add_argument(
        "--finetune-epochs", type=int, help="epochs of fine-tuning of each network (5)"
    )
    advise.add_argument(
        "--workers", type=int, help="networks trained at the same time (one per core)"
    )


def _add(stage: argparse.ArgumentParser, option: str) -> None:
    if option == "workers":
        stage.add_argument("--workers", type=int, default=1, help="masks trained at the same time")
    elif option == "sites":
        text = "only masks of whole sites, which the main table needs"
        stage.add_argument("--only-sites", action="store_true", help=text)
    elif option == "each":
        text = "runs, one after the other"
        stage.add_argument("--run", required=True, nargs="+", help=text)
    elif option == "logs":
        text = "write the output of each run to FOLDER/RUN.log"
        stage.add_argument("--logs", type=Path, metavar="FOLDER", help=text)
    elif option == "targets":
        stage.add_argument("--target", help="one dataset (default: all targets of the run)")
    elif option == "runs":
        stage.add_argument("--runs", default="*", help="pattern of run paths (default: all)")
    elif option == "finished":
        text = "leave out incomplete runs instead of failing"
        stage.add_argument("--finished", action="store_true", help=text)
    elif option == "file":
        stage.add_argument("--file", help="one file of the dataset (default: all)")
    elif option == "folder":
        text = "the folder that contains `data/` (default: the experiment's)"
        stage.add_argument("--folder", type=Path, help=text)
    elif option == "minutes":
        stage.add_argument(
            "--minutes", type=float, default=1e9, help="start no run after this time"
        )
    elif option == "concurrency":
        text = "runs and masks trained at the same time (default: 1, or 16 on CUDA)"
        stage.add_argument("--concurrency", type=int, metavar="N", help=text)
    else:
        stage.add_argument(f"--{option}", required=True)


if __name__ == "__main__":
    raise SystemExit(main())
