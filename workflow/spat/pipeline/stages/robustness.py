"""robustness(run): manipulate one site at a time, then score, measure and fine-tune the network.

The network without the site does not depend on the manipulation. So the measured worth of a
manipulated site is the loss of that network minus the loss of the manipulated network. After
fine-tuning, it is the loss of the mask that `prune` trained minus the loss of the fine-tuned
manipulated network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pandas as pd

from spat.attention.manipulation import manipulated, obstacle
from spat.attention.mask import Mask
from spat.files import replacing
from spat.models.base import Network
from spat.models.registry import MODELS
from spat.pipeline import digests, records, runs, scores_frame
from spat.pipeline.cache import Finished, Kept, stage_lock, write_record
from spat.pipeline.config import Config
from spat.pipeline.runs import Run
from spat.pipeline.stages import common, select
from spat.pipeline.stages.common import Opened
from spat.pipeline.stages.trained import finetuned
from spat.scoring import scores
from spat.scoring.names import CRITERIA, PASS, offered
from spat.surgery import cut, storage
from spat.tasks.task import case_losses
from spat.training.loop import Seeds, fit
from spat.training.metrics import evaluate

INTACT: Final = "intact"
REMOVED: Final = "removed"
COLUMNS: Final = ("site", "name", "manipulation", "quantity", "phase", "split", "value")
SPLITS: Final = ("validation", "test")


@dataclass(frozen=True)
class Case:
    """A network with a manipulation of a site; the intact network has no site (-1)."""

    manipulation: str
    site: int = -1

    @property
    def folder(self) -> str:
        """The folder below `robustness/kept/`."""
        name = self.manipulation.replace(":", "")
        return name if self.site < 0 else f"site{self.site}/{name}"


@dataclass(frozen=True)
class Bench:
    """The data, settings and dense model that all cases of a run share."""

    opened: Opened
    folder: Path
    trained: Finished
    masks: Callable[[str], Finished]  # the files of the fine-tuned masks, by name
    criteria: tuple[str, ...]
    depends: Mapping[str, Any]  # the settings that each part of the kept work depends on

    def model(self) -> Network:
        """The trained dense model."""
        return common.network(self.trained, self.opened.device)

    @property
    def scorable(self) -> bool:
        """Whether pre-training saved weights."""
        return select.scorable(self.trained.metrics)

    def keep(self, part: str, case: Case) -> Kept:
        """The kept work of a case: `scores` (and its errors), or `finetune`."""
        digest = records.digest(
            digests.code_digest("robustness", self.opened.run.model),
            self.depends[part],
            self.opened.data_sha256,
            self.trained.metrics["files"][storage.WEIGHTS],
            case.manipulation,
            case.site,
        )
        return Kept(self.folder / "kept" / case.folder / part, digest)

    def seed(self, case: Case) -> int:
        """The seed of patterns and noise, the same for all manipulations of a site."""
        return self.opened.run.seed_for("robustness", case.site)


def robustness(config: Config, run: Run) -> None:
    """Write `robustness.parquet` and `metrics.json`; earlier finished work is used.

    Raises:
        FileNotFoundError: naming the missing fine-tuned mask, if `robustness.finetune` is set.
    """
    with stage_lock(config, run, "robustness"):
        started = time.perf_counter()
        folder = common.stage_folder(config, run, "robustness")
        opened = common.opened(config, run, "robustness")
        bench = Bench(
            opened,
            folder,
            Finished(runs.folder(config, run, "pretrain")),
            partial(finetuned, config, run),
            computed(config.pruning.site.criteria, run.model),
            digests.settings(config, "robustness", run),
        )
        model = bench.model()
        manipulations = config.robustness.manipulations
        cases, skipped = _cases(model, manipulations) if bench.scorable else ([], [])
        measured = {"untuned": {case: measure(bench, model, case) for case in cases}}
        if config.robustness.finetune:
            measured["finetuned"] = {case: _finetuned(bench, model, case) for case in cases}
        with_drop = "loss_drop_val" in config.pruning.site.criteria
        primary = opened.task.metrics[0].name
        rows = [
            row
            for index, site in enumerate(model.sites() if cases else ())
            for row in _rows(site.name, index, measured, primary, with_drop=with_drop)
        ]
        frame = pd.DataFrame(rows, columns=list(COLUMNS))
        with replacing(folder / "robustness.parquet") as temporary:
            frame.to_parquet(temporary)
        write_record(
            folder,
            {
                **opened.header(),
                "digest": digests.settings_digest(config, "robustness", run),
                "cases": len(cases),
                "skipped": skipped,
                "batches": config.scoring.batches,
                "wall_s": time.perf_counter() - started,
            },
            ["robustness.parquet"],
        )


def measure(bench: Bench, model: Network, case: Case) -> dict[str, Any]:
    """Errors of each split (the primary metric), and scores of the site.

    Scores are of all sites for the intact network, and none for a removed site. `model` is the
    dense model, which is restored afterwards.
    """
    kept = bench.keep("scores", case)
    if not kept.done:
        with _in_place(bench, model, case):
            errors = _errors(bench, model)
            scored = {} if case.manipulation == REMOVED else _scored(bench, model, case)
        kept.finish({**bench.opened.header(), "errors": errors, "scores": scored})
    return kept.metrics


def finetune(bench: Bench, case: Case) -> dict[str, Any]:
    """Fine-tune a manipulated network as `prune` fine-tunes the control.

    Batches and seeds are the same, so a gate of 1 is bit-identical to the control.
    """
    kept = bench.keep("finetune", case)
    if not kept.done:
        opened, run = bench.opened, bench.opened.run
        model = bench.model()
        control = common.full_mask(cut.heads_of(model))
        seeds = Seeds(run.seed_for("order", "finetune", 0), run.seed_for("dropout", control, 0))
        with _in_place(bench, model, case):
            fitted = fit(
                model,
                opened.task,
                opened.splits,
                opened.finetuning,
                seeds,
                state=kept.state,
                label=f"{run.path} {case.folder}",
            )
            errors = _errors(bench, model)
        kept.finish(
            {
                **opened.header(),
                "errors": errors,
                "status": fitted.status,
                "epochs": fitted.epochs,
                "best_epoch": fitted.best_epoch,
                "wall_s": fitted.seconds,
            }
        )
    return kept.metrics


def computed(criteria: Sequence[str], model: str) -> tuple[str, ...]:
    """The site criteria whose score can be computed from the manipulated network.

    `random` and `send_train` (a record of pre-training) are left out, since they do not depend on
    the manipulation; `loss_drop_val` is the measured change on the validation split and needs no
    second pass.
    """
    asked = dict.fromkeys(("send", *criteria))
    possible = offered(MODELS[model].views)
    return tuple(n for n in asked if n in possible and CRITERIA[n].origin in (*PASS, "ablation"))


def _cases(model: Network, manipulations: Sequence[str]) -> tuple[list[Case], list[dict[str, Any]]]:
    """The networks of a run, and the manipulations left out with their reasons."""
    cases, skipped = [Case(INTACT)], []
    for index, site in enumerate(model.sites()):
        cases.append(Case(REMOVED, index))
        for name in dict.fromkeys(manipulations):
            if reason := obstacle(site, name):
                skipped.append({"site": site.name, "manipulation": name, "reason": reason})
            else:
                cases.append(Case(name, index))
    return cases, skipped


def _in_place(bench: Bench, model: Network, case: Case) -> AbstractContextManager[object]:
    """The context in which `model` is the network of the case."""
    full = Mask.full(cut.heads_of(model))
    if case.manipulation == INTACT:
        return cut.masked(model, full)
    if case.manipulation == REMOVED:
        return cut.masked(model, full.without_sites([case.site]))
    return manipulated(model.sites()[case.site], case.manipulation, bench.seed(case))


def _errors(bench: Bench, model: Network) -> dict[str, float]:
    opened = bench.opened
    return {s: evaluate(model, opened.task, getattr(opened.splits, s)).primary for s in SPLITS}


def _scored(bench: Bench, model: Network, case: Case) -> dict[str, dict[str, float]]:
    """Scores over all windows by site and criterion, for the site of the case or all sites."""
    names, opened = bench.criteria, bench.opened
    scored = scores.score(
        model,
        opened.splits.train,
        opened.batches,
        case_losses(opened.task),
        names,
        batch_size=opened.training.batch_size,
        statistics=False,
    )
    frame = scores_frame.frame(scored)
    whole = frame["batch"].eq(scores_frame.ALL) & frame["head"].eq(scores_frame.SITE)
    asked = frame["criterion"].isin(names) & (frame["site"].eq(case.site) | (case.site < 0))
    return {
        str(site): dict(zip(rows["criterion"], rows["value"], strict=True))
        for site, rows in frame[whole & asked].groupby("site")
    }


def _finetuned(bench: Bench, model: Network, case: Case) -> dict[str, Any]:
    """The fine-tuned network of a case; the control and masks without a site are from `prune`."""
    if case.manipulation not in (INTACT, REMOVED):
        return finetune(bench, case)
    full = Mask.full(cut.heads_of(model))
    mask = full if case.manipulation == INTACT else full.without_sites([case.site])
    metrics = bench.masks(mask.name).metrics
    errors, primary = metrics["errors"]["finetuned"], bench.opened.task.metrics[0].name
    return {"errors": {split: errors[split][primary] for split in SPLITS}}


def _rows(
    name: str,
    site: int,
    measured: dict[str, dict[Case, dict[str, Any]]],
    primary: str,
    *,
    with_drop: bool,
) -> Iterator[tuple[Any, ...]]:
    """The rows (`COLUMNS`) of a site, intact and manipulated."""
    for phase, networks in measured.items():
        without = networks[Case(REMOVED, site)]["errors"]
        for case, metrics in networks.items():
            if case.manipulation == REMOVED or case.site not in (-1, site):
                continue
            base = (site, name, case.manipulation)
            for criterion, value in metrics.get("scores", {}).get(str(site), {}).items():
                yield *base, criterion, phase, "train", _number(value)
            for split in SPLITS:
                error = _number(metrics["errors"][split])
                change = _number(without[split]) - error
                yield *base, primary, phase, split, error
                yield *base, "leave_one_out", phase, split, change
                if with_drop and (phase, split) == ("untuned", "validation"):
                    yield *base, "loss_drop_val", phase, split, change


def _number(value: float | None) -> float:
    # JSON has no NaN, so values that are not finite were written as null.
    return float("nan") if value is None else value
