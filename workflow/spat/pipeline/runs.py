"""Runs (one dense baseline and the networks pruned from it), and the grid of runs."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from spat.models.registry import MODELS
from spat.pipeline import datasets, tasks
from spat.pipeline.config import NAME, Config, ConfigError, GridBlock
from spat.tasks.setting import WRITTEN

if TYPE_CHECKING:
    from spat.models.registry import Setup

# A name has no slash and no leading dot, so that a path stays inside the experiment's folder.
_NUMBER = r"(0|[1-9][0-9]{0,18})"
_PATH = re.compile(rf"({NAME.pattern})/([A-Za-z0-9]+)-({NAME.pattern})/({WRITTEN})/seed{_NUMBER}")
# BASE+KIND: a variant that is a control of the variant BASE.
_CONTROL = re.compile(r"([^+]+)\+.+")
# The largest number of runs of an experiment. `paper` has a few hundred.
MOST_RUNS = 20_000


@dataclass(frozen=True, order=True)
class Run:
    """One (dataset, model, variant, setting, seed).

    The setting has the form of the task: ``l96-h96`` for forecasts, ``28x28`` for images.
    """

    dataset: str
    model: str
    variant: str
    setting: str
    seed: int

    @property
    def path(self) -> str:
        """The folder below the experiment, which is also the run's name on the command line."""
        return f"{self.dataset}/{self.model}-{self.variant}/{self.setting}/seed{self.seed}"

    @classmethod
    def parse(cls, path: str) -> Run:
        """The run of a path such as ``ETTh1/iTransformer-deep/l96-h96/seed0``.

        Raises:
            ValueError: naming the path, if it has another form.
        """
        if not (parts := _PATH.fullmatch(path)):
            raise ValueError(
                f"run {path!r}: expected DATASET/MODEL-VARIANT/lLOOKBACK-hHORIZON/seedSEED, or "
                "for images DATASET/MODEL-VARIANT/HEIGHTxWIDTH/seedSEED"
            )
        dataset, model, variant, setting, seed = parts.groups()
        model, variant = _undashed(model, variant)
        return cls(dataset, model, variant, setting, int(seed))

    @property
    def keys(self) -> dict[str, str | int]:
        """The values that identify the run within an experiment."""
        return asdict(self)

    def seed_for(self, *purpose: str | int) -> int:
        """A 63-bit seed derived from the run's identity and a purpose; the same on any machine."""
        text = json.dumps([self.path, *purpose])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _undashed(model: str, variant: str) -> tuple[str, str]:
    """Model and variant if the model's name has a dash: S, Mamba-deep -> S-Mamba, deep."""
    folder = f"{model}-{variant}"
    for name in sorted(MODELS, key=len, reverse=True):
        left = folder.removeprefix(f"{name}-")
        if "-" in name and left != folder and NAME.fullmatch(left):
            return name, left
    return model, variant


def control_of(variant: str) -> str | None:
    """The variant that `variant` (``BASE+KIND``) is a control of; None if it is not a control."""
    match = _CONTROL.fullmatch(variant)
    return match[1] if match else None


def columns(config: Config, run: Run) -> dict[str, str | int | None]:
    """The columns of a run in every frame: `spat.pipeline.frames.RUN`."""
    return {
        "experiment": config.experiment,
        "task": MODELS[run.model].task,
        "dataset": run.dataset,
        "source": datasets.row_of(config, run.dataset).station,
        "model": run.model,
        "variant": run.variant,
        "control_of": control_of(run.variant),
        "setting": run.setting,
        "seed": run.seed,
    }


@dataclass(frozen=True)
class Planned:
    """A run with the options of its grid block."""

    run: Run
    orders: int
    prune: bool


def plan(config: Config) -> tuple[Planned, ...]:
    """All runs of the grid, each once, in the order of the grid.

    Raises:
        ConfigError: if there are too many runs, two blocks have different options for one run, a
            dataset is too short for a run, or a model cannot be built with its settings.
    """
    plans: dict[Run, Planned] = {}
    lists = ("datasets", "models", "variants", "horizons", "seeds")
    count = sum(prod(len(getattr(b, key) or " ") for key in lists) for b in config.grid)
    if count > MOST_RUNS:
        raise ConfigError(
            f"grid: {count} runs are more than {MOST_RUNS}: divide them among several experiments"
        )
    for index, block in enumerate(config.grid):
        for run in _expand(config, block, index):
            if problem := does_not_fit(config, run):
                raise ConfigError(f"grid.{index}: {run.path}: {problem}")
            has_sites = MODELS[run.model].role == "attention"
            planned = Planned(run, block.orders, block.prune and has_sites)
            if plans.setdefault(run, planned) != planned:
                raise ConfigError(
                    f"grid.{index}: {run.path} is also in an earlier block, with other `orders` or "
                    "`prune`: change the blocks so that they do not overlap"
                )
    return tuple(plans.values())


def does_not_fit(config: Config, run: Run) -> str | None:
    """The reason why the run cannot be trained (a short dataset, invalid settings), or None."""
    task = tasks.of(run)
    if problem := task.too_short(config, run):
        return problem
    settings = setup_of(config, run).settings
    return settings.problem(task.shape(config, run, time_features=settings.uses_marks))


def studied(config: Config) -> tuple[Run, ...]:
    """The runs whose sites are manipulated (`robustness.runs`), in the order of the grid.

    Raises:
        ConfigError: if a pattern matches no run that is pruned.
    """
    pruned = [planned.run for planned in plan(config) if planned.prune]
    for pattern in config.robustness.runs:
        if not any(fnmatchcase(run.path, pattern) for run in pruned):
            raise ConfigError(
                f"robustness.runs: {pattern!r} matches no run of the grid with attention to prune; "
                "a path is DATASET/MODEL-VARIANT/SETTING/seedSEED"
            )
    return tuple(
        run for run in pruned if any(fnmatchcase(run.path, p) for p in config.robustness.runs)
    )


def folder(config: Config, run: Run, stage: str = "") -> Path:
    """``results/<experiment>/<run>/<stage>``."""
    return config.folder / run.path / stage


def prepared_file(config: Config, name: str) -> Path:
    """The file that `prepare` writes for a dataset."""
    return config.folder / "prepared" / f"{name}.npz"


def setup_of(config: Config, run: Run) -> Setup:
    """The run's settings and recipe: the registry's row with changes by variant and `training`.

    Raises:
        ConfigError: naming the variant, if it changes a setting that the model does not have.
    """
    section = config.variants.get(run.variant)
    base, changes = (section.base, section.model) if section else (run.variant, {})
    try:
        published = tasks.of(run).setup(config, run, base, changes)
    except ValueError as error:
        raise ConfigError(f"variants.{run.variant} ({run.path}): {error}") from None
    recipe = replace(
        published.recipe,
        epochs=(section and section.epochs) or config.training.epochs or published.recipe.epochs,
        patience=config.training.patience or published.recipe.patience,
        sam_rho=section.sam_rho if section and section.sam_rho else published.recipe.sam_rho,
        share=section.share if section else 1.0,
    )
    return replace(published, recipe=recipe)


def learning_rates(config: Config, run: Run) -> tuple[float, ...]:
    """The learning rates that pre-training tries; it keeps the one with the best validation."""
    section = config.variants.get(run.variant)
    tried = section.learning_rates if section else ()
    return tried or (setup_of(config, run).recipe.learning_rate,)


def targets(config: Config, run: Run) -> tuple[str, ...]:
    """The datasets on which a run is evaluated zero-shot (its model must allow their shape)."""
    fixed = MODELS[run.model].fixed_channels
    return tuple(
        target
        for source, target in config.transfer.pairs
        if source == run.dataset
        and not (
            fixed
            and datasets.row_of(config, source).channels != datasets.row_of(config, target).channels
        )
    )


def _expand(config: Config, block: GridBlock, index: int) -> list[Run]:
    def settings(dataset: str, model: str) -> list[str]:
        try:
            return tasks.RUNS[MODELS[model].task].settings(config, block, dataset)
        except ConfigError as error:
            raise ConfigError(f"grid.{index}: {error}") from None

    return [
        Run(dataset, model, variant, setting, seed)
        for dataset in block.datasets
        for model in block.models
        for variant in block.variants
        for setting in settings(dataset, model)
        for seed in block.seeds
    ]
