"""Every row of the dataset registry, against the field's protocol and the published checksums."""

import csv
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from spat.data.registry import DATASETS, Borders, DataError, Dataset, borders

SHARED = Path(__file__).parents[3] / "shared"
CHECKSUMS = SHARED / "reference" / "dataset_checksums.csv"
UCI = ("Appliances", "BeijingPM25", "HouseholdPower")
PUBLISHED = [row for row in DATASETS.values() if row.urls and row.name not in UCI]
# A dataset whose file is only in a folder of `data.mirrors`.
LOCAL = replace(DATASETS["ETTh1"], name="Local", file="local.csv", urls=(), sha256=("0" * 64,))

# Borders that the published loaders give: end of training, of validation, of test.
PROTOCOL = {
    "ETTh1": (8640, 11520, 14400),
    "ETTh2": (8640, 11520, 14400),
    "ETTm1": (34560, 46080, 57600),
    "ETTm2": (34560, 46080, 57600),
    "Weather": (36887, 42157, 52696),
    "Electricity": (18412, 21044, 26304),
    "Traffic": (12280, 14036, 17544),
    "Exchange": (5311, 6071, 7588),
    "ILI": (676, 773, 966),
    "Solar": (36792, 42048, 52560),
    "PEMS08": (10713, 14285, 17856),
    # Not published: 70, 10 and 20 % of the rows after reading.
    "Appliances": (13814, 15788, 19735),
    "BeijingPM25": (30659, 35040, 43800),
    "HouseholdPower": (24212, 27672, 34589),
}


def test_all_published_datasets_are_registered() -> None:
    assert list(DATASETS) == [
        *("ETTh1", "ETTh2", "ETTm1", "ETTm2", "Weather", "Electricity", "Traffic", "Exchange"),
        *("ILI", "Solar", "PEMS03", "PEMS04", "PEMS07", "PEMS08"),
        *("Appliances", "BeijingPM25", "HouseholdPower", "synthetic", "synthetic2"),
    ]


@pytest.mark.parametrize("dataset", [*DATASETS.values(), LOCAL], ids=lambda row: row.name)
def test_each_row_is_consistent(dataset: Dataset) -> None:
    assert dataset.rows > 0
    assert dataset.channels > 0
    assert pd.tseries.frequencies.to_offset(dataset.step) is not None
    assert 1 < dataset.season < dataset.rows
    assert dataset.horizons == tuple(sorted(set(dataset.horizons)))
    split = borders(dataset, dataset.rows)
    assert split.train[0] == 0
    assert split.train[1] == split.validation[0]
    assert split.validation[1] == split.test[0]
    assert split.test[1] <= dataset.rows
    # Each split holds a window of the longest standard horizon.
    longest = dataset.horizons[-1]
    assert split.train[1] >= dataset.lookback + longest
    assert split.validation[1] - split.validation[0] >= longest
    assert split.test[1] - split.test[0] >= longest


@pytest.mark.parametrize("dataset", [*PUBLISHED, LOCAL], ids=lambda row: row.name)
def test_row_with_a_file_can_be_fetched(dataset: Dataset) -> None:
    assert dataset.file
    assert all(url.startswith("https://") for url in dataset.urls)
    assert all(Path(url).name.removesuffix(".gz") == dataset.file for url in dataset.urls)
    assert dataset.sha256
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in dataset.sha256)


def test_no_two_datasets_have_a_common_hash() -> None:
    hashes = [digest for dataset in DATASETS.values() for digest in dataset.sha256]
    assert len(hashes) == len(set(hashes))


@pytest.mark.parametrize("name", UCI)
def test_uci_rows_name_their_page_and_the_hash_of_the_local_copy(name: str) -> None:
    row = DATASETS[name]
    assert row.page.startswith("https://archive.ics.uci.edu/dataset/")
    assert all(url.startswith("https://archive.ics.uci.edu/") for url in row.urls)
    sums = SHARED / "datasets" / "SHA256SUMS"
    if not sums.exists():
        pytest.skip(f"no table of checksums at {sums}")
    known = dict(line.split()[::-1] for line in sums.read_text().splitlines())
    assert row.sha256 == (known[row.file],)


@pytest.mark.parametrize(("name", "ends"), PROTOCOL.items())
def test_borders_are_the_published_ones(name: str, ends: tuple[int, int, int]) -> None:
    a, b, c = ends
    assert borders(DATASETS[name], DATASETS[name].rows) == Borders((0, a), (a, b), (b, c))


def test_ett_uses_the_first_twenty_months_only() -> None:
    assert borders(DATASETS["ETTh1"], 14400).test == (11520, 14400)
    with pytest.raises(DataError, match="ETTh1: 14399 rows, but its splits need the first 14400"):
        borders(DATASETS["ETTh1"], 14399)


def test_stations_tie_the_ett_files_together() -> None:
    assert DATASETS["ETTh1"].station == DATASETS["ETTm1"].station == "ETT1"
    assert DATASETS["ETTh2"].station == DATASETS["ETTm2"].station == "ETT2"
    rest = [row.station for row in DATASETS.values() if not row.name.startswith("ETT")]
    assert len(rest) == len(set(rest))


def test_rows_agree_with_the_published_checksums() -> None:
    if not CHECKSUMS.exists():
        pytest.skip(f"no table of checksums at {CHECKSUMS}")
    with CHECKSUMS.open(newline="") as file:
        table = list(csv.DictReader(file))
    for dataset in PUBLISHED:
        # `weather.csv (CRLF)` and `(LF variant)` are two lines of the same file.
        lines = [line for line in table if line["file"].split(" ")[0] == dataset.file]
        assert {line["sha256"] for line in lines} == set(dataset.sha256), dataset.name
        assert {int(line["rows"]) for line in lines} == {dataset.rows}, dataset.name
        assert {int(line["channels"]) for line in lines} == {dataset.channels}, dataset.name
        urls = {line["url"] for line in table if line["file"].startswith(dataset.file)}
        assert set(dataset.urls) <= urls, dataset.name


def test_the_registry_imports_no_heavy_package() -> None:
    code = (
        "import sys, spat.data.registry\n"
        "heavy = {'numpy', 'pandas', 'torch', 'pyarrow', 'pooch'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_borders_follow_the_number_of_rows() -> None:
    longer = replace(DATASETS["synthetic"], rows=100)
    assert borders(longer, 100) == Borders((0, 70), (70, 80), (80, 100))
