"""The records of jobs (code, settings, versions, device and time), and checks of their content."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from spat.data.registry import WITHOUT_TIME, step_seconds
from spat.models.registry import MODELS
from spat.models.settings import Recipe
from spat.pipeline.config import Config, Rule
from spat.pipeline.runs import Run
from spat.scoring.names import CRITERIA
from spat.tasks.setting import WRITTEN, Window
from spat.training.options import Precision

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

RECORDED_PACKAGES = ("torch", "numpy", "pandas", "snakemake", "mlflow")


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of JSON-serialisable parts, independent of the order of keys."""
    text = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def header(
    config: Config, stage: str, run: Run | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """The part of `metrics.json` that all jobs have."""
    return {
        "stage": stage,
        "experiment": config.experiment,
        **(run.keys if run else {}),
        "config": digest(config.model_dump(mode="json")),
        "commit": commit(),
        "device": device,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
        "written": now(),
    }


@cache
def commit() -> str:
    """The git commit of the code, `-dirty` if tracked files differ.

    It is `unknown` outside git, and if the commit of the surrounding repository lacks this file.
    """
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    committed = [*git, "cat-file", "-e", f"HEAD:./{here.name}"]
    describe = [*git, "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    # A hook of git, or `git rebase --exec`, names its own repository in these variables.
    named = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    own = {name: value for name, value in os.environ.items() if name not in named}
    try:
        for command in (committed, describe):
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=own)
            if done.returncode:
                return "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


@cache
def versions() -> dict[str, str]:
    """The versions of Python and of the packages that affect the results."""
    versions = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


# The content of each kept record. Every reader (`spat.pipeline.cache`) checks records by `fault`.
# Keys that only some versions wrote have a default, since nothing depends on them. Unknown keys are
# allowed.


def _form(pattern: str, what: str) -> AfterValidator:
    """A validator of the form of a text; `what` describes the form."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"expected {what}")
        return text

    return AfterValidator(check)


def _iso(text: str) -> str:
    try:
        zone = datetime.fromisoformat(text).tzinfo
    except ValueError:
        zone = None
    if zone is None:
        raise ValueError("expected a time with its zone, as 2026-01-31T12:00:00+00:00")
    return text


def _step(text: str) -> str:
    step_seconds(text)
    return text


_Text = Annotated[
    str, _form(r"[^\W_][^\x00-\x1f\x7f]{0,255}", "text that begins with a letter or digit")
]
_Hash = Annotated[str, _form(r"[0-9a-f]{64}", "64 digits of a SHA-256")]
_Commit = Annotated[str, _form(r"unknown|[0-9a-f]{4,64}(-dirty)?", "a git commit, or 'unknown'")]
_File = Annotated[
    str, _form(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", "the name of a file, without a folder")
]
_MASK_FORM: Final = r"none|[01]+(?:\.[01]+)*"
_Mask = Annotated[str, _form(_MASK_FORM, "a mask, such as 1.0.1")]
_Step = Annotated[str, AfterValidator(_step)]
_BatchSize = Annotated[str, _form(r"[1-9][0-9]*", "a batch size")]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Amount = Annotated[float, Field(ge=0)]
_Phase = Literal["dense", "pruned", "finetuned", "scratch"]
# By the name of the metric. Values that are not finite were written as null.
_Means = dict[str, _Amount | None]

# The metrics of each task (as in `spat.tasks.registry`, which imports torch), the primary first.
METRICS: Final = {
    "forecasting": ("mse", "mae"),
    "imaging": ("cross_entropy", "error_rate"),
    "text": ("cross_entropy", "error_rate"),
}


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Record(_Part):
    """The values of `header`, the digest of the dependencies, and the files."""

    files_of_stage: ClassVar[tuple[str, ...]] = ()
    stage: str
    experiment: _Text
    dataset: str
    model: str
    variant: str
    setting: str
    seed: _Count
    config: _Hash
    commit: _Commit
    device: _Text
    machine: _Text
    versions: dict[str, str]
    written: Annotated[str, AfterValidator(_iso)]
    digest: _Hash
    files: dict[_File, _Hash]

    @model_validator(mode="after")
    def _lists_its_files(self) -> _Record:
        if missing := sorted(set(self.files_of_stage) - set(self.files)):
            raise ValueError(f"`files` does not list {', '.join(missing)}")
        return self

    def require_metrics(self, errors: Mapping[str, _Means], *, finite: bool) -> None:
        """Require all metrics of the task for each split, and finite values if `finite`."""
        wanted = METRICS.get(MODELS[self.model].task, ()) if self.model in MODELS else ()
        for split, means in errors.items():
            for metric in wanted or means:
                if metric not in means:
                    raise ValueError(f"`errors` of {split} has no {metric!r}")
                if finite and means[metric] is None:
                    raise ValueError(
                        f"`errors` of {split} has no value of {metric!r}, but `status` is 'ok'"
                    )


class _Splits(_Part):
    validation: _Means
    test: _Means


class _Fitted(_Record):
    """A trained network and its costs."""

    status: Literal["ok", "diverged"]
    mask: _Mask
    params: _Count
    flops: _Count
    wall_s: _Amount
    epochs: _Count
    best_epoch: _Count

    @model_validator(mode="after")
    def _best_is_one_of_the_epochs(self) -> _Fitted:
        if self.best_epoch > self.epochs:
            raise ValueError(f"`best_epoch` is {self.best_epoch}, but `epochs` is {self.epochs}")
        return self


class _Tried(_Part):
    learning_rate: _Amount
    validation: _Amount | None
    epochs: _Count
    status: Literal["ok", "diverged"]


# A setting of a network or a recipe; `Settings` and `Recipe` define the types.
_Value = bool | Annotated[int, Field(ge=0)] | _Amount | _Text | None


class _Pretrain(_Fitted):
    files_of_stage = (
        *("architecture.json", "forecasts.npz", "history.csv", "losses.npy"),
        *("model.safetensors", "scores.parquet"),
    )
    data_sha256: _Hash
    settings: dict[str, _Value]
    recipe: dict[str, _Value]
    learning_rates: list[_Tried] = []
    sites: list[_Text]
    heads: list[Annotated[int, Field(ge=1, lt=2**31)]]
    errors: _Splits

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> _Pretrain:
        from spat.attention.mask import Mask  # values that stages without masks do not depend on

        if len(self.sites) != len(self.heads):
            raise ValueError(f"`sites` has {len(self.sites)} entries, `heads` {len(self.heads)}")
        if self.mask != (full := Mask.full(self.heads).name):
            raise ValueError(f"`mask` is {self.mask!r}, but that of the dense model is {full!r}")
        _require_type("recipe", self.recipe, Recipe)
        if self.model in MODELS:
            _require_type("settings", self.settings, MODELS[self.model].settings)
        self.require_metrics(dict(self.errors), finite=self.status == "ok")
        return self


def _require_type(key: str, values: Mapping[str, Any], kind: type[Any]) -> None:
    """Require all fields of a dataclass with their types."""
    try:
        TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join([key, *map(str, first["loc"][:1])])
        raise ValueError(f"`{name}`: {first['msg'][0].lower()}{first['msg'][1:]}") from None


class _Stages(_Part):
    pruned: _Splits
    finetuned: _Splits


class _Network(_Fitted):
    files_of_stage = (
        *("architecture.json", "forecasts.npz", "history.csv", "losses.npy", "model.safetensors"),
        *("untuned_losses.npy", "validation_losses.npy"),
    )
    order: _Count
    phase: Literal["finetuned", "scratch"]
    swept_params: _Count = 0
    dead_params: _Count = 0
    errors: _Stages

    @model_validator(mode="after")
    def _has_its_errors(self) -> _Network:
        for splits in (self.errors.pruned, self.errors.finetuned):
            self.require_metrics(dict(splits), finite=self.status == "ok")
        return self


class _Listed(_Part):
    mask: _Mask
    order: _Count
    phase: Literal["finetuned", "scratch"]
    sizes: dict[_File, _Count]


class _Manifest(_Record):
    masks: list[_Listed]


class _Score(_Record):
    files_of_stage = ("maps.npz", "scores.parquet")
    epoch: _Count
    batches: _Count
    not_offered: list[_Text] = []
    wall_s: _Amount


class _Select(_Record):
    files_of_stage = ("selections.csv",)
    decisions: _Count
    masks: _Count


class _Decide(_Record):
    files_of_stage = ("selections.csv",)
    path: list[_Mask]
    chosen: dict[_Text, _Mask]


_ByMask = dict[_Mask, dict[_BatchSize, _Amount]]


class _Measure(_Record):
    files_of_stage = ("maps.npz",)
    latency_ms: _ByMask
    latency_spread_ms: _ByMask | None = None
    uncertain: list[_Count] = []
    memory_mb: _ByMask
    wall_s: _Amount = 0.0

    @model_validator(mode="after")
    def _has_all_for_each(self) -> _Measure:
        measured = {mask: set(by_size) for mask, by_size in self.latency_ms.items()}
        for name in ("latency_spread_ms", "memory_mb"):
            of = getattr(self, name)
            if of is not None and {mask: set(by_size) for mask, by_size in of.items()} != measured:
                raise ValueError(f"`{name}` has other masks or batch sizes than `latency_ms`")
        return self


class _Evaluated(_Part):
    mask: _Mask
    phase: _Phase
    order: _Count
    errors: _Means


class _Transfer(_Record):
    target: str
    data_sha256: _Hash
    masks: Annotated[list[_Evaluated], Field(min_length=1)]
    wall_s: _Amount

    @model_validator(mode="after")
    def _has_its_errors(self) -> _Transfer:
        for entry in self.masks:
            self.require_metrics({f"mask {entry.mask}": entry.errors}, finite=False)
        return self


class _Skipped(_Part):
    site: _Text
    manipulation: _Text
    reason: str


class _Robustness(_Record):
    files_of_stage = ("robustness.parquet",)
    cases: _Count
    skipped: list[_Skipped]
    batches: _Count
    wall_s: _Amount


class _Primary(_Part):
    """The primary metric of each split."""

    validation: _Amount | None
    test: _Amount | None


class _Scores(_Record):
    errors: _Primary
    scores: dict[str, dict[str, float | None]]


class _Tuned(_Record):
    errors: _Primary
    status: Literal["ok", "diverged"]
    epochs: _Count
    best_epoch: _Count
    wall_s: _Amount


class _Gaps(_Part):
    rule: Literal["refuse", "interpolate", "forward"]
    limit: _Count
    dropped: _Count
    steps: _Count
    values: _Count
    longest: _Count


class _Prepared(_Part):
    dataset: str
    source: _Text
    sha256: _Hash
    digest: _Hash
    files: dict[_File, _Hash]


class _Images(_Part):
    train: _Count
    validation: _Count
    test: _Count


class _PreparedImages(_Prepared):
    images: _Images


class _PreparedText(_Prepared):
    bytes: _Count


class _PreparedSeries(_Prepared):
    file: str | None
    rows: Annotated[int, Field(ge=1, lt=2**63)]
    channels: Annotated[int, Field(ge=1, lt=2**63)]
    step: _Step
    names: list[str]
    gaps: _Gaps

    @model_validator(mode="after")
    def _names_each_channel(self) -> _PreparedSeries:
        if len(self.names) != self.channels:
            raise ValueError(
                f"`names` has {len(self.names)} entries, but `channels` is {self.channels}"
            )
        return self


@dataclass(frozen=True)
class _Place:
    """The kind of record at a path, its identifying keys, and the command that writes it."""

    kind: type[_Part]
    keys: Mapping[str, Any]
    command: str


def fault(path: Path, values: Mapping[str, Any]) -> str | None:
    """The problem in the content of a record (file, key, value and valid values), or None.

    The path below the experiment determines the required keys, their types and ranges, and the run,
    network or target that the record must belong to. None is returned if there is no problem, or if
    no job keeps a record at such a path.
    """
    if (place := _place(path)) is None:
        return None
    for key, value in place.keys.items():
        if key not in values:
            return f"{path}: has no {key!r} (written by another version)"
        if values[key] != value or type(values[key]) is not type(value):
            return f"{path}: {key!r} is {_shown(values[key])}, but here it must be {value!r}"
    try:
        place.kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"] if part != "[key]")
        if first["type"] == "missing":
            return f"{path}: has no {key!r} (written by another version)"
        reason = first["msg"].removeprefix("Value error, ")
        if not key:
            return f"{path}: {reason}"
        return f"{path}: {key!r} is {_shown(first['input'])}: {reason[0].lower()}{reason[1:]}"
    return None


# The columns of kept tables: integers (i), numbers (f) or text (t). Other columns are allowed.
_SCORES: Final = {"epoch": "i", "site": "i", "name": "t", "head": "i", "criterion": "t"}
_TABLES: Final[dict[str, dict[str, str]]] = {
    "history.csv": {"epoch": "i", "learning_rate": "f", "seconds": "f"},  # and of each metric
    "scores.parquet": {**_SCORES, "value": "f"},
    "selections.csv": {
        **{"criterion": "t", "draw": "i", "level": "t", "ratio": "f", "rule": "t"},
        **{"removed": "i", "mask": "t", "finetunings": "i"},
    },
    "robustness.parquet": {
        **{"site": "i", "name": "t", "manipulation": "t", "quantity": "t", "phase": "t"},
        **{"split": "t", "value": "f"},
    },
}
# What the texts of a column of a table or of a frame may be: regular expressions.
_TEXTS: Final[dict[str, str]] = {
    "task": "|".join(METRICS),
    "model": "|".join(MODELS),
    "setting": WRITTEN,
    "mask": _MASK_FORM,
    "network": f"dense|{_MASK_FORM}",
    "phase": "dense|pruned|finetuned|scratch|untuned",
    "split": "train|validation|test",
    "metric": "|".join(name for names in METRICS.values() for name in names),
    "criterion": "|".join((*CRITERIA, "control", "exhaustive", "uniformity")),
    "level": "site|head",
    "rule": "|".join(("", *get_args(Rule), "path", "exhaustive")),
    "stage": "pretrain|finetune|scratch",
    "status": "ok|diverged",
    "precision": "|".join(get_args(Precision)),
    "manipulation": "intact|uniform|identity|pattern|(?:gate|noise):.+",
}
_QUANTITIES: Final = {
    "history": r"learning_rate|seconds|(?:train|val)_\w+",
    "robustness": "|".join(
        (*CRITERIA, "leave_one_out", *(first for first, *_ in METRICS.values()))
    ),
}
_KINDS: Final = {"i": "whole numbers", "f": "numbers", "t": "text"}
# The number of dimensions of kept arrays: losses of windows, and of windows without each site.
_ARRAYS: Final = {
    **dict.fromkeys(("losses.npy", "validation_losses.npy", "untuned_losses.npy"), 1),
    "loss_drops.npy": 2,
}
_FORECASTS: Final = {"window": 1, "input": 2, "truth": 2, "forecast": 2}
# The number of example forecasts that are kept.
EXAMPLE_WINDOWS: Final = 3


def table_fault(path: Path, table: pd.DataFrame) -> str | None:
    """The problem in the columns of a kept table (file, column and valid values), or None."""
    import pandas as pd

    wanted = dict(_TABLES.get(path.name, {}))
    if path.parts[-2:] == ("score", "scores.parquet"):
        wanted["batch"] = "i"
    if path.name == "history.csv":
        first, *_ = names = METRICS.get(_task(path) or "", ("",))
        wanted |= {name: "f" for name in [f"train_{first}", *(f"val_{n}" for n in names)] if first}
    for column, kind in wanted.items():
        if column not in table:
            return f"{path}: has no column {column!r} (written by another version)"
        types = pd.api.types
        is_number = types.is_numeric_dtype(table[column]) and not types.is_bool_dtype(table[column])
        # A column without values may have any type.
        right = (
            table[column].isna().all()
            or {
                "i": is_number and types.is_integer_dtype(table[column]),
                "f": is_number,
                "t": all(isinstance(text, str) for text in table[column].dropna()),
            }[kind]
        )
        if not right or (kind == "i" and table[column].isna().any()):
            wrong = f"holds values such as {_shown(table[column].iloc[0])}"
            return f"{path}: column {column!r} {wrong}: expected {_KINDS[kind]}"
        form = text_form(path.stem, column)
        if form and (unknown := unknown_text(column, table[column], form)):
            return f"{path}: {unknown}"
    return None


def text_form(name: str, column: str) -> str | None:
    """The regular expression of the texts in a column of a table or frame; None for any text."""
    return _QUANTITIES.get(name) if column == "quantity" else _TEXTS.get(column)


def unknown_text(column: str, values: pd.Series, form: str) -> str | None:
    """The first text of a column that is not of its form: its row (from 1), and what is valid."""
    known = values.drop_duplicates().dropna().astype(str)
    wrong = known[~known.str.fullmatch(form)]
    if wrong.empty:
        return None
    plain = re.fullmatch(r"[\w|-]+", form)
    valid = f"one of {form.replace('|', ', ')}" if plain else f"of the form {form}"
    return f"row {wrong.index[0] + 1}, column {column!r}: {_shown(wrong.iloc[0])} is not {valid}"


def array_fault(path: Path, arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """The problem in kept arrays, by their names (`""` for the array of a `.npy`), or None."""
    dimensions = {"": _ARRAYS[path.name]} if path.name in _ARRAYS else {}
    if path.name == "forecasts.npz" and _task(path) == "forecasting":
        dimensions = _FORECASTS
    if path.name == "maps.npz":
        dimensions = dict.fromkeys(arrays, 3)
    for name, count in dimensions.items():
        about = f" {name!r}" if name else ""
        if name not in arrays:
            return f"{path}: has no array{about} (written by another version)"
        if arrays[name].ndim != count or arrays[name].dtype.kind not in "fiu":
            content = f"{arrays[name].dtype} {list(arrays[name].shape)}"
            return f"{path}: the array{about} is {content}: expected numbers in {count} dimensions"
        if path.name == "maps.npz" and not (arrays[name].size and _all_finite(arrays[name])):
            return f"{path}: the array{about} is empty, or has values that are not finite"
    if dimensions is _FORECASTS:
        return _forecasts_fault(path, arrays)
    return None


def _all_finite(array: NDArray[Any]) -> bool:
    return bool(abs(array).max() < float("inf"))


def _forecasts_fault(path: Path, arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """The array of example forecasts without the windows and steps of the run's setting."""
    place = _place(path.with_name("metrics.json"))
    window = Window.parse(place.keys["setting"] if place else "")
    steps = {"input": window.lookback, "truth": window.horizon, "forecast": window.horizon}
    for name, array in arrays.items():
        wanted = (EXAMPLE_WINDOWS, *((steps[name],) if name in steps else ()))
        if name in _FORECASTS and array.shape != wanted:
            return f"{path}: the array {name!r} is {list(array.shape)}: expected {list(wanted)}"
    return None


def command(path: Path) -> str | None:
    """The command that writes the record (or the file next to it) at a path, or None."""
    place = _place(path)
    return place.command if place else None


def _task(path: Path) -> str | None:
    """The task of the run that a file belongs to."""
    place = _place(path.with_name("metrics.json"))
    model = place.keys.get("model") if place else None
    return MODELS[model].task if model in MODELS else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_PREPARED: Final[dict[str, type[_Prepared]]] = {
    "forecasting": _PreparedSeries,
    "imaging": _PreparedImages,
    "text": _PreparedText,
}


def _place(path: Path) -> _Place | None:
    *folders, name = path.parts
    if folders and folders[-1] == "prepared" and path.suffix == ".json":
        keys = {"dataset": path.stem}
        task = WITHOUT_TIME[path.stem].task if path.stem in WITHOUT_TIME else "forecasting"
        prepared = _PREPARED[task]
        return _Place(prepared, keys, f"{_STAGE} prepare {_FILE} --dataset {quote(path.stem)}")
    for index in range(len(folders) - 2, 2, -1):
        try:
            run = Run.parse("/".join(folders[index - 3 : index + 1]))
        except ValueError:
            continue
        stage, inner = folders[index + 1], folders[index + 2 :]
        if place := _of_run(stage, inner, name):
            kind, own, options = place
            words = f"{_STAGE} {stage} {_FILE} --run {quote(run.path)}{options}"
            return _Place(kind, {"stage": stage, **run.keys, **own}, words)
    return None


_STAGE: Final = "python -m spat"
_FILE: Final = "--config FILE"
_SIMPLE: Final[dict[str, type[_Part]]] = {
    "pretrain": _Pretrain,
    "score": _Score,
    "select": _Select,
    "decide": _Decide,
    "measure": _Measure,
    "robustness": _Robustness,
}


def _of_run(
    stage: str, inner: Sequence[str], name: str
) -> tuple[type[_Part], dict[str, Any], str] | None:
    """The kind of a record below the folder of a run, its keys, and the options of its command."""
    match stage, tuple(inner), name:
        case ("pretrain", ("kept",), "metrics.json"):
            return _Pretrain, {}, ""
        case (_, (), "metrics.json") if stage in _SIMPLE:
            return _SIMPLE[stage], {}, ""
        case ("prune", (), "manifest.json" | "sites.json"):
            return _Manifest, {}, ""
        case ("prune", ("masks", mask, folder), "metrics.json"):
            if job := re.fullmatch(r"(order|scratch)(\d{1,9})", folder):
                phase = "finetuned" if job[1] == "order" else "scratch"
                return _Network, {"mask": mask, "order": int(job[2]), "phase": phase}, ""
        case ("transfer", (target,), "metrics.json"):
            return _Transfer, {"target": target}, f" --target {quote(target)}"
        case ("robustness", ("kept", *_, "scores"), "metrics.json"):
            return _Scores, {}, ""
        case ("robustness", ("kept", *_, "finetune"), "metrics.json"):
            return _Tuned, {}, ""
    return None
