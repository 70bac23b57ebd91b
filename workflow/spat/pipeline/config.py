"""The configuration: one frozen pydantic model per section, with a description of each field.

Unknown keys are errors. `load` validates the mapping from Snakemake or a YAML file; the JSON schema
for editors (`python -m spat schema`) is generated from the same models.
"""

from __future__ import annotations

import codecs
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from spat.data.registry import DATASETS, DIRECTIVES, WITHOUT_TIME, GapRule, step_seconds
from spat.models import settings
from spat.pipeline import yaml_reader
from spat.training.options import Device, Precision

Rule = Literal["gap", "one_se", "loss_drop_bound", "validation"]
# The bounds are far above useful values, and below values that would fail after hours.
Count = Annotated[int, Field(ge=1, le=10**6)]
Steps = Annotated[int, Field(ge=1, le=settings.MOST_OF_OTHERS)]
Epochs = Annotated[int, Field(ge=1, le=settings.MOST_EPOCHS)]
Batch = Annotated[int, Field(ge=1, le=settings.MOST_IN_BATCH)]
Draws = Annotated[int, Field(ge=1, le=1000)]
LearningRate = Annotated[float, Field(gt=0.0, le=settings.MOST_LEARNING_RATE)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Ratio = Annotated[float, Field(gt=0.0, le=1.0)]

# The largest number of values of a generated series: 4 GB.
MOST_GENERATED = 5 * 10**8
# The largest FACTOR and SIZE of a manipulation.
MOST_MANIPULATED = 1000

# The largest number of invalid keys that a message names.
MOST_SHOWN = 20

# Names become folders and arguments of shell commands.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
# Names in `results` that cannot name an experiment: the committed results and MLflow's files.
RESERVED_EXPERIMENTS = (
    *("reference", "mlartifacts", "mlflow.lock", "mlflow.db"),
    *("mlflow.db-journal", "mlflow.db-shm", "mlflow.db-wal"),
)
# The longest name in a path, and the longest path to which names of files can be added, in bytes.
LONGEST_NAME, LONGEST_PATH = 255, 3500
COMMITTED = Path(__file__).parents[3] / "results" / "reference"


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError(
            f"{_cut(repr(text))} is not a name: use at most 64 letters (a to z), digits, '_', '-', "
            "'.' and '+', starting with a letter or digit"
        )
    return text


def _path(text: Any) -> Any:
    """A path with `~` and environment variables replaced.

    Raises:
        ValueError: if the path cannot be used by Snakemake or on a command line: it has a brace
            (Snakemake's wildcards), a question mark (the query of MLflow's address), a control
            character, a leading dash, a variable that is not set or empty, or a name that is too
            long.
    """
    if not isinstance(text, str):
        return text
    # Names of files are bytes, which are UTF-8 even where the locale is another one.
    text = os.fsdecode(text.encode("utf-8", "surrogateescape"))
    try:
        path = os.path.expandvars(Path(text).expanduser())
    except RuntimeError:
        raise ValueError(f"{text!r}: there is no such user's home folder") from None
    if name := unset_variable(text):
        raise ValueError(f"{text!r}: the environment variable ${name} {_UNSET}")
    if not text.strip() or text.startswith("-") or re.search(r"[{}?\x00-\x1f\x7f]", path):
        raise ValueError(
            f"{text!r} is not a usable path: it is empty, starts with '-', or contains a brace, a "
            "question mark or a control character: use another folder"
        )
    longest = max(len(os.fsencode(part)) for part in Path(path).parts or ("",))
    if longest > LONGEST_NAME or len(os.fsencode(Path(path).absolute())) > LONGEST_PATH:
        raise ValueError(f"{path[:60]!r}...: the path is too long; take a shorter one")
    return path


_UNSET = "is not set, or empty: set it, or write the text itself"


def variables(text: str) -> list[str]:
    """The environment variables that a text names as `$NAME` or `${NAME}`."""
    return re.findall(r"\$\{?(\w+)", text)


def unset_variable(text: str) -> str | None:
    """The first variable in a text that has no value."""
    return next((name for name in variables(text) if not os.environ.get(name)), None)


Name = Annotated[
    str,
    AfterValidator(_name),
    WithJsonSchema({"type": "string", "pattern": f"^{NAME.pattern}$"}),
]
Folder = Annotated[Path, BeforeValidator(_path)]


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names file, key, value and valid values."""


class Section(BaseModel):
    """A part of the configuration: immutable; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if kind is not bool and "bool" not in str(kind) and (bad := _truth_value(value)):
            raise ValueError(f"{bad} is a truth value; quote it if a name is meant")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_texts_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if kind is bool and not isinstance(value, bool):
            raise ValueError(f"{value!r} is not a boolean: write true or false, without quotes")
        names = set(re.findall(r"\w+", str(kind)))
        is_number = names & {"int", "float"} and not names & {"str", "Path", "Literal", "dict"}
        if is_number and (text := _number_in_quotes(value)) is not None:
            raise ValueError(f"{text!r} is text: write the number without quotes")
        return value

    @field_validator("*")
    @classmethod
    def _nothing_twice(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, tuple) and info.field_name not in cls._MAY_REPEAT:
            seen = set()
            for item in value:
                if item in seen:
                    raise ValueError(f"{_shown(item)} is in the list twice")
                seen.add(item)
        return value

    _MAY_REPEAT: ClassVar[frozenset[str]] = frozenset()


def _truth_value(value: Any) -> str | None:
    """The first boolean in a list, or the value itself if it is one, as YAML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return next(filter(None, map(_truth_value, value)), None)
    return None


def _number_in_quotes(value: Any) -> str | None:
    """The first text in a list, or the value itself if it is text, that pydantic would convert."""
    if isinstance(value, list | tuple):
        return next((text for part in value if (text := _number_in_quotes(part))), None)
    try:
        return value if isinstance(value, str) and float(value) is not None else None
    except ValueError:
        return None


def _cut(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."


def _shown(item: Any) -> str:
    return str(list(item)) if isinstance(item, tuple) else repr(item)


class GridBlock(Section):
    """A block of runs: the product of its datasets, models, variants, horizons and seeds."""

    datasets: tuple[str, ...] = Field(min_length=1, description="Rows of the dataset registry.")
    models: tuple[str, ...] = Field(min_length=1, description="Rows of the model registry.")
    variants: tuple[str, ...] = Field(
        ("deep",),
        min_length=1,
        description="`published` (the authors' sizes), `deep` (four sites), or one of `variants`.",
    )
    lookback: Steps | None = Field(None, description="Input steps; the dataset's own when absent.")
    horizons: Annotated[tuple[Steps, ...], Field(min_length=1)] | None = Field(
        None, description="Forecast steps; the dataset's standard horizons when absent."
    )
    seeds: tuple[Seed, ...] = Field((0,), min_length=1, description="Each seed is a separate run.")
    orders: Draws = Field(1, description="Data orders in which each mask is fine-tuned.")
    prune: bool = Field(True, description="False stops after pre-training (dense errors only).")


class VariantSection(Section):
    """A new variant: a variant of the registry with changed settings."""

    base: Literal["published", "deep"] = Field(
        "deep", description="The variant whose settings are changed."
    )
    model: dict[str, int | float | str | bool] = Field(
        default_factory=dict, description="Hyper-parameters to change: d_model, e_layers, dropout."
    )
    sam_rho: float | None = Field(
        None,
        gt=0.0,
        le=settings.MOST_RADIUS,
        description="Radius of sharpness-aware minimisation; none when absent.",
    )

    share: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Share of the training windows in an epoch, drawn anew for each epoch; for "
        "models that are too slow for all windows.",
    )
    epochs: Epochs | None = Field(
        None, description="Epochs of pre-training at most; those of `training` when absent."
    )
    learning_rates: tuple[LearningRate, ...] = Field(
        (),
        description="Rates tried in pre-training: the one with the best validation MSE is kept.",
    )

    @field_validator("model", mode="before")
    @classmethod
    def _single_values(cls, model: Any) -> Any:
        for key, value in model.items() if isinstance(model, dict) else ():
            if not isinstance(value, int | float | str | bool):
                raise ValueError(f"{key}: {value!r} is neither a number nor text nor true or false")
        return model


class SyntheticSection(Section):
    """The generated series (datasets `synthetic` and `synthetic2`)."""

    rows: Count = Field(6000, description="Time steps.")
    channels: Annotated[int, Field(ge=1, le=10_000)] = Field(7, description="Channels.")
    seed: Seed = Field(0, description="Seed of the generator; `synthetic2` uses the next one.")
    coupling: float = Field(
        0.6, ge=0.0, le=1.0, description="Share of a channel that follows another one with a lag."
    )
    noise: float = Field(
        0.3, ge=0.0, le=1000.0, description="Standard deviation of the white noise."
    )

    @model_validator(mode="after")
    def _fits_into_memory(self) -> SyntheticSection:
        if self.rows * self.channels > MOST_GENERATED:
            raise ValueError(
                f"{self.rows} rows of {self.channels} channels are more than {MOST_GENERATED} "
                "values: generate fewer"
            )
        return self


class CustomSection(Section):
    """A custom dataset: a text file with a header and one row per time step.

    `python -m spat add FILE` prints the block for a file.
    """

    file: Folder = Field(description="Path of the file; it may be compressed by gzip or xz.")
    step: str = Field(description="Time between two rows: a number and s, min, h, D or W.")
    split: tuple[float, float, float] = Field(
        (0.7, 0.1, 0.2),
        description="Training, validation and test: shares of the rows, or numbers of rows.",
    )
    season: Count | None = Field(
        None, description="Steps of the main season; a day, a week (daily) or a year (weekly)."
    )
    lookback: Steps = Field(96, description="Input steps, if the grid sets none.")
    horizons: tuple[Steps, ...] = Field(
        (96, 192, 336), min_length=1, description="Forecast steps, if the grid sets none."
    )
    source: Name | None = Field(
        None,
        description="Datasets of one source are not independent; a separate source when absent.",
    )
    gaps: GapRule = Field(
        "refuse",
        description="Missing values: an error, the previous value, or linear within a split.",
    )
    gap_limit: Count | None = Field(
        None, description="Longest gap that is filled, in steps; a season when absent."
    )
    date: tuple[str, ...] = Field(
        ("date",), description="Columns of the time stamp; empty for data without time stamps."
    )
    date_format: str = Field(
        "", description="For example `%d/%m/%Y %H:%M`; common formats when absent."
    )
    drop: tuple[str, ...] = Field((), description="Columns that are left out.")
    mean: bool = Field(False, description="Average the rows over each step.")
    separator: Annotated[str, Field(min_length=1, max_length=1)] = Field(
        ",", description="The separator of cells."
    )
    decimal: Literal[".", ","] = Field(".", description="The decimal point.")
    encoding: str = Field("utf-8", description="Encoding of the text, such as latin-1 or utf-16.")

    _MAY_REPEAT: ClassVar[frozenset[str]] = frozenset({"split"})

    @field_validator("date", "drop", mode="before")
    @classmethod
    def _several(cls, names: Any) -> Any:
        return (names,) if isinstance(names, str) else names

    @field_validator("step")
    @classmethod
    def _step_is_known(cls, step: str) -> str:
        step_seconds(step)
        return step

    @field_validator("split")
    @classmethod
    def _all_rows_or_whole_numbers(
        cls, split: tuple[float, float, float]
    ) -> tuple[float, float, float]:
        shares = all(0 < part < 1 for part in split) and abs(sum(split) - 1) < 1e-9
        if not shares and not all(part >= 1 and part == int(part) for part in split):
            raise ValueError(
                f"{list(split)}: expected three shares with sum 1 or three numbers of rows"
            )
        return split

    @field_validator("date_format")
    @classmethod
    def _directives_are_read(cls, text: str) -> str:
        used = re.findall("%(.?)", text)
        if text and (not set(used) <= set(DIRECTIVES) or not {"Y", "y"} & set(used)):
            raise ValueError(
                f"{text!r} does not say how a time is written: take %Y (or %y) and what follows "
                f"from %{', %'.join(DIRECTIVES[2:-1])}, as in '%d/%m/%Y %H:%M'"
            )
        return text

    @field_validator("separator")
    @classmethod
    def _separates(cls, separator: str) -> str:
        if separator not in "\t " and (
            not re.fullmatch(r"[!-~]", separator) or re.match(r"""[\w"'+.:-]""", separator)
        ):
            raise ValueError(
                f"{separator!r} cannot separate cells, since numbers, names or time stamps may "
                "hold it: take ',', ';', '|', ' ' or \"\\t\""
            )
        return separator

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, encoding: str) -> str:
        try:
            "".encode(encoding)  # some Python encodings do not encode text
            return codecs.lookup(encoding).name
        except LookupError:
            raise ValueError(f"{encoding!r} is not the name of an encoding") from None

    @model_validator(mode="after")
    def _agree(self) -> CustomSection:
        if self.gap_limit is not None and self.gaps == "refuse":
            raise ValueError(
                f"gap_limit: {self.gap_limit} has no effect, since gaps are refused: set "
                "`gaps: forward` or `gaps: interpolate`, or leave out `gap_limit`"
            )
        if self.separator == self.decimal:
            raise ValueError(f"separator and decimal are both {self.decimal!r}")
        if not self.date and (self.mean or self.date_format):
            raise ValueError("date: without time stamps, `mean` and `date_format` cannot be set")
        if both := sorted({*self.date} & {*self.drop}):
            raise ValueError(f"drop: {both[0]!r} is also a column of `date`: name it in one")
        if len(self.date) > 1 and not self.date_format:
            raise ValueError(
                "date_format: give the format of the columns of `date`, joined by a blank, such as "
                "'%d/%m/%Y %H:%M:%S'"
            )
        return self


class DataSection(Section):
    """Where the data come from."""

    cache: Folder = Field(Path("data"), description="Folder of verified downloads.")
    mirrors: tuple[Folder, ...] = Field(
        (Path("../shared/datasets"),), description="Folders of copies, tried before the network."
    )
    synthetic: SyntheticSection = SyntheticSection()
    custom: dict[Name, CustomSection] = Field(
        default_factory=dict, description="Custom datasets, by name."
    )


class TrainingSection(Section):
    """Pre-training of the dense baselines."""

    device: Device = Field("auto", description="`auto` is CUDA when there is one, else the CPU.")
    precision: Precision = Field(
        "float32",
        description="TF32 and bf16 only if asked for; bf16 on a CPU needs AVX512_BF16 or AMX.",
    )
    epochs: Epochs | None = Field(
        None, description="Maximum number of epochs; that of the model registry when absent."
    )
    patience: Epochs | None = Field(
        None, description="Epochs without a better validation MSE after which training stops."
    )


class ScoringSection(Section):
    """The one pass from which every criterion is computed."""

    batches: Steps = Field(16, description="Number of training batches that are scored.")
    batch_size: Batch = Field(32, description="Windows per scored batch.")


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


class LevelSection(Section):
    """What is pruned at one level (whole sites, or single heads)."""

    criteria: tuple[str, ...] = Field((), description="Rows of the criterion registry.")
    ratios: tuple[Ratio | str, ...] = Field(
        (), description="Shares removed, in (0, 1], or `auto:<rule>` (site level)."
    )

    @field_validator("ratios", mode="before")
    @classmethod
    def _shares_or_rules(cls, ratios: Any) -> Any:
        if not isinstance(ratios, list | tuple):
            return ratios
        for ratio in ratios:
            if not _is_share(ratio) and str(ratio).removeprefix("auto:") not in get_args(Rule):
                rules = ", ".join(f"auto:{rule}" for rule in get_args(Rule))
                raise ValueError(f"{ratio!r} is neither a number in (0, 1] nor one of {rules}")
        return ratios

    @property
    def fixed(self) -> tuple[float, ...]:
        """The ratios that are numbers."""
        return tuple(ratio for ratio in self.ratios if not isinstance(ratio, str))

    @property
    def rules(self) -> tuple[str, ...]:
        """The adaptive rules among the ratios, without `auto:`."""
        return tuple(r.removeprefix("auto:") for r in self.ratios if isinstance(r, str))


class PruningSection(Section):
    """Which masks are trained."""

    site: LevelSection = LevelSection(
        criteria=("send",), ratios=(0.25, 0.5, 0.75, 1.0, "auto:validation")
    )
    head: LevelSection = LevelSection()
    draws: Draws = Field(10, description="Random masks per ratio for the criterion `random`.")
    exhaustive: bool = Field(
        False, description="Train every site mask, which the comparison with the oracle needs."
    )
    scratch: bool = Field(
        False, description="Also train the site masks of `send` and the empty mask from scratch."
    )

    @property
    def has_heads(self) -> bool:
        """Whether masks of single heads are trained."""
        return bool(self.head.criteria and self.head.fixed)


class FinetuneSection(Section):
    """Fine-tuning of every mask, including the full mask (the control)."""

    epochs: Epochs = Field(
        3, description="Number of epochs, the same for every mask; the best of 1..epochs is kept."
    )
    lr_scale: float = Field(
        1.0, gt=0.0, le=1000.0, description="Factor on the learning rate of pre-training."
    )


class RobustnessSection(Section):
    """Manipulation of single attention sites in trained models, to test the criteria."""

    runs: tuple[str, ...] = Field(
        (),
        description="Patterns of the paths of runs (`*` matches anything) to study; none if empty.",
    )
    manipulations: tuple[str, ...] = Field(
        (
            *("uniform", "identity", "pattern"),
            *("gate:0", "gate:0.25", "gate:0.5", "gate:1"),
            *("noise:0.5", "noise:1", "noise:2"),
        ),
        min_length=1,
        description="`uniform`, `identity`, `pattern` (attention), `gate:FACTOR`, `noise:SIZE`.",
    )
    finetune: bool = Field(
        False, description="Also fine-tune each manipulated network; needs `pruning.exhaustive`."
    )

    @field_validator("manipulations")
    @classmethod
    def _manipulations_exist(cls, manipulations: tuple[str, ...]) -> tuple[str, ...]:
        for name in manipulations:
            kind, _, size = name.partition(":")
            if name not in ("uniform", "identity", "pattern") and not (
                kind in ("gate", "noise") and _is_canonical(size)
            ):
                raise ValueError(
                    f"{name!r} is not one of uniform, identity, pattern, gate:FACTOR, noise:SIZE "
                    "(a number of at least 0 in its shortest form: gate:0.5, noise:1)"
                )
            if size and (len(size) > 20 or float(size) > MOST_MANIPULATED):
                raise ValueError(
                    f"{_cut(name)}: choose a number of at most 20 characters, up to "
                    f"{MOST_MANIPULATED}"
                )
        return manipulations


class TransferSection(Section):
    """Zero-shot transfer: trained on the first, evaluated on the test split of the second."""

    pairs: tuple[tuple[str, str], ...] = Field((), description="(source, target) datasets.")


class MeasureSection(Section):
    """Measurement of latency and memory, without other jobs on the machine."""

    batch_sizes: tuple[Batch, ...] = Field(
        (1, 128), min_length=1, description="Windows per forward pass."
    )
    # A single round has no spread, which shows whether the machine was idle.
    repeats: int = Field(
        15, ge=2, le=1000, description="Alternating rounds; the lower quartile is reported."
    )


class TrackingSection(Section):
    """Tracking in MLflow, which can be rebuilt from the files at any time."""

    enabled: bool = Field(True, description="If false, only files are written.")
    uri: str | None = Field(
        None,
        description="Address of a tracking server; SQLite in `results` if absent. `$NAME` is an "
        "environment variable; passwords and tokens must be given this way (or in "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN).",
    )

    @field_validator("uri")
    @classmethod
    def _no_password(cls, uri: str | None) -> str | None:
        if any(not re.fullmatch(r"\$(\w+|\{\w+\})", secret) for secret in _secrets(uri or "")):
            raise ValueError(
                "the address contains a password or token, which would be written to files: put it "
                "into an environment variable and write $NAME instead"
            )
        return uri

    @field_validator("uri")
    @classmethod
    def _is_address(cls, uri: str | None) -> str | None:
        if uri is not None and not uri.startswith("$") and not STORE.match(uri):
            raise ValueError(
                f"{without_secrets(uri)!r} is not the address of an MLflow store: it must start "
                "with http://, https://, sqlite:///, postgresql://, mysql:// or mssql://"
            )
        return uri


class StatisticsSection(Section):
    """Intervals and tests."""

    bootstrap: Annotated[int, Field(ge=100, le=10**6)] = Field(2000, description="Bootstrap draws.")
    confidence: float = Field(0.95, gt=0.0, lt=1.0, description="Level of the intervals.")
    margin: float = Field(
        0.01, gt=0.0, le=1.0, description="Equivalence margin, as a fraction of the MSE."
    )


class Config(Section):
    """One experiment of the pipeline."""

    experiment: Name = Field(
        description="Name of the experiment; its files are in `results/<experiment>`."
    )
    results: Folder = Field(Path("results"), description="Folder of all experiments.")
    grid: tuple[GridBlock, ...] = Field(min_length=1)
    variants: dict[Name, VariantSection] = Field(default_factory=dict)
    data: DataSection = DataSection()
    training: TrainingSection = TrainingSection()
    scoring: ScoringSection = ScoringSection()
    pruning: PruningSection = PruningSection()
    finetune: FinetuneSection = FinetuneSection()
    robustness: RobustnessSection = RobustnessSection()
    transfer: TransferSection = TransferSection()
    measure: MeasureSection = MeasureSection()
    tracking: TrackingSection = TrackingSection()
    statistics: StatisticsSection = StatisticsSection()

    _MAY_REPEAT: ClassVar[frozenset[str]] = frozenset({"grid"})

    @model_validator(mode="after")
    def _names_exist(self) -> Config:
        # Imported here, since the registries import modules of this package.
        from spat.models.registry import MODELS
        from spat.scoring.names import CRITERIA, HEAD_CRITERIA, offered

        def check(key: str, names: tuple[str, ...], valid: tuple[str, ...]) -> None:
            for name in names:
                if name not in valid:
                    meant = _meant(name, valid)
                    raise ValueError(f"{key}: {name!r} is not one of {', '.join(valid)}{meant}")

        series = (*DATASETS, *self.data.custom)
        datasets = (*series, *WITHOUT_TIME)
        variants = ("published", "deep", *self.variants)
        for i, block in enumerate(self.grid):
            check(f"grid.{i}.datasets", block.datasets, datasets)
            check(f"grid.{i}.models", block.models, tuple(MODELS))
            check(f"grid.{i}.variants", block.variants, variants)
        tasks = {MODELS[model].task for block in self.grid for model in block.models}
        of_data = {
            WITHOUT_TIME[name].task if name in WITHOUT_TIME else "forecasting"
            for block in self.grid
            for name in block.datasets
        }
        if len(tasks | of_data) > 1:
            raise ValueError(
                f"grid: models for {' and '.join(sorted(tasks))} and data for "
                f"{' and '.join(sorted(of_data))}: an experiment has one task, so that its errors "
                "can be compared"
            )
        for name in self.data.custom:
            if name in DATASETS or name in WITHOUT_TIME:
                raise ValueError(f"data.custom.{name}: the name belongs to the dataset registry")
        for i, pair in enumerate(self.transfer.pairs):
            check(f"transfer.pairs.{i}", pair, series)
            if pair[0] == pair[1]:
                raise ValueError(f"transfer.pairs.{i}: source and target are both {pair[0]!r}")
        check("pruning.site.criteria", self.pruning.site.criteria, tuple(CRITERIA))
        check("pruning.head.criteria", self.pruning.head.criteria, tuple(HEAD_CRITERIA))
        pruned = [block for block in self.grid if block.prune]
        for model in dict.fromkeys(name for block in pruned for name in block.models):
            if MODELS[model].role == "attention":
                # Criteria that a model does not offer are left out for it; it is an error if none
                # remains.
                asked = self.pruning.site.criteria
                possible = offered(MODELS[model].views)
                if asked and not set(asked) & set(possible):
                    raise ValueError(
                        f"pruning.site.criteria: {', '.join(asked)} cannot rank the sites of "
                        f"{model}, which do not offer the view needed: add one that works with "
                        f"it: {', '.join(possible)}"
                    )
        if self.pruning.head.rules:
            raise ValueError("pruning.head.ratios: adaptive rules work on whole sites only")
        if self.pruning.site.rules and "send" not in self.pruning.site.criteria:
            raise ValueError(
                "pruning.site.ratios: adaptive rules follow `send`: add it to criteria"
            )
        if self.robustness.finetune and not self.pruning.exhaustive:
            raise ValueError(
                "robustness.finetune: needs the fine-tuned masks that leave one site out: set "
                "pruning.exhaustive: true"
            )
        if self.experiment.lower() in RESERVED_EXPERIMENTS or _is_committed(self.folder):
            raise ValueError(
                f"experiment: the files of {self.experiment!r} would be in {self.folder}, which "
                "contains other files of the project: use another name or another folder `results`"
            )
        for name in self.variants:
            if name in ("published", "deep"):
                raise ValueError(f"variants.{name}: the name belongs to the model registry")
        return self

    @property
    def task(self) -> str:
        """The task of all runs."""
        from spat.models.registry import MODELS

        return MODELS[self.grid[0].models[0]].task

    @property
    def folder(self) -> Path:
        """The folder of the experiment's files."""
        return self.results / self.experiment


def load(values: Mapping[str, Any], source: str = "config") -> Config:
    """Validate a mapping; `source` is the name of its files in error messages.

    Raises:
        ConfigError: with one line per invalid key, which names the value and valid values.
    """
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_explain(error, source)) from None


def read_file(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, unchanged.

    Raises:
        ConfigError: naming the file, if `yaml_reader.read` fails or the content is not a mapping.
    """
    try:
        values = yaml_reader.read(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        raise ConfigError(f"{path}: expected a mapping of keys, found {found}")
    return values


def load_files(*paths: Path, given: Mapping[str, Any] | None = None) -> Config:
    """Validate YAML files, each merged over the previous one (lists are replaced, not joined).

    `given` are values of Snakemake's `--config`, which are merged over the files.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        values = read_file(path)
        merged = _merge(merged, values)
    merged = _merge(merged, yaml_reader.typed(dict(given or {})))
    return load(merged, " + ".join(map(str, paths)))


# The schemes that MLflow accepts, with an optional driver for a database.
STORE = re.compile(r"https?://|(sqlite|postgresql|mysql|mssql)(\+\w+)?://")
_SECRET_KEYS = (
    r"(?i:[\w-]*(?:pass(?:word|wd)?|pwd|token|secret|key|auth|sig(?:nature)?|credentials?))"
)


def _secrets(uri: str) -> list[str]:
    """The secret parts of an address: user name, password or token."""
    scheme, separator, rest = uri.partition("://")
    scheme, rest = (scheme, rest) if separator else ("", uri)
    secrets = re.findall(rf"[?&#;]{_SECRET_KEYS}=([^&#;]*)", rest)
    user, at, _ = rest.rpartition("@")
    if at and scheme not in ("sqlite", "file"):
        name, colon, password = user.partition(":")
        # The user of a web address without a password is a token.
        secrets += [password] if colon else [name] if scheme in ("http", "https") else []
    return [secret for secret in secrets if secret]


def without_secrets(text: str) -> str:
    """The text without user names, passwords and tokens of addresses."""
    if "@" in text:
        # The user begins a word: from each letter of a long text, the search would take hours.
        user = r"""(?<=//)[^\s'"]*@|(?<![^\s'"/:])[^\s'"/:]+:(?!//)[^\s'"]*@"""
        text = re.sub(user, "", text)
    return re.sub(rf"""([?&#;]{_SECRET_KEYS}=)[^&#;\s'"]*""", r"\1...", text)


def dump(config: Config) -> str:
    """The resolved configuration as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _is_committed(folder: Path) -> bool:
    # `Path.resolve` raises an error for a link to itself.
    places = map(os.path.realpath, (COMMITTED, Path("results", "reference")))
    return any(Path(os.path.realpath(folder)).is_relative_to(place) for place in places)


def _is_canonical(number: str) -> bool:
    # Each number has a single form, since names become folders: not `1.0`, `.5` or `1e0`.
    return re.fullmatch(r"(0|[1-9]\d*)(\.\d*[1-9])?", number) is not None


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


# The user wrote YAML, so the terms of pydantic are replaced by those of YAML.
_IN_YAML = {
    "^Input ": "",
    "[Tt]uple": "list",
    " after validation": "",
    " for <class '[^']*'>": "",
    r"dictionary( or instance of \w+)?": "mapping of keys",
}


def _explain(error: ValidationError, source: str) -> str:
    lines = [f"{source}: the configuration cannot be used"]
    problems = error.errors()
    for problem in problems[:MOST_SHOWN]:
        if (
            problem["type"] == "too_short"
            and len(problem["input"]) > problem["ctx"]["actual_length"]
        ):
            continue  # existing entries have their own lines
        key = ".".join(str(part) for part in problem["loc"] if part != "[key]")
        message = problem["msg"]
        for pattern, words in _IN_YAML.items():
            message = re.sub(pattern, words, message)
        shown = problem["input"]
        value = "" if isinstance(shown, dict | BaseModel) else f" (given: {_cut(repr(shown))})"
        value = without_secrets(value)
        if problem["type"] == "extra_forbidden":
            valid = _valid_keys(problem["loc"])
            meant = _meant(str(problem["loc"][-1]), valid)
            message = f"unknown key; valid here: {', '.join(valid)}{meant}"
        elif problem["type"] == "less_than_equal":
            value += (
                ". A larger value is most often a mistake; if you need it, raise the bound in "
                "workflow/spat/pipeline/config.py"
            )
        elif problem["type"] == "value_error":  # from validators, which name the value
            message, value = without_secrets(str(problem["ctx"]["error"])), ""
        # The message of an error about several sections names the key.
        lines.append("  " + ": ".join(filter(None, (_cut(key), message))) + value)
    if len(problems) > MOST_SHOWN:
        lines.append(f"  and {len(problems) - MOST_SHOWN} more")
    return "\n".join(lines)


def _meant(name: str, valid: Sequence[str]) -> str:
    """A question for the valid name that is like this one; empty if there is none."""
    lower = {other.lower(): other for other in valid}
    close = difflib.get_close_matches(name.lower(), lower, n=1)
    return f" (did you mean {lower[close[0]]!r}?)" if close else ""


def _valid_keys(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Config
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:  # a key of `variants`
            continue
        model = _section_of(field.annotation)
    return list(getattr(model, "model_fields", {}))


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (section := _section_of(argument)) is not None:
            return section
    return None
