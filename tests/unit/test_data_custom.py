"""Datasets of the user: the block of the configuration, the measured sizes, the output of `add`."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pytest
import yaml

from spat.data import series
from spat.data.registry import DATASETS, Gaps, Rows, Shares
from spat.pipeline import advise, datasets, digests, runs
from spat.pipeline.add import add
from spat.pipeline.cli import main
from spat.pipeline.config import Config, ConfigError, load
from spat.pipeline.stages.prepare import is_prepared, prepare

ROWS = 400


def write(path: Path, separator: str = ",", decimal: str = ".", lost: tuple[int, ...] = ()) -> Path:
    """An hourly file of two channels; the values of the rows in `lost` are missing."""
    lines = [separator.join(("date", "load", "OT"))]
    times = np.datetime64("2021-01-01T00:00:00") + np.arange(ROWS).astype("m8[h]")
    for i, time in enumerate(times):
        cells = [f"{np.sin(i / 4):.3f}".replace(".", decimal), str(i % 24)]
        if i in lost:
            cells[0] = "NA"
        lines.append(separator.join([str(time).replace("T", " "), *cells]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def config(folder: Path, **section: Any) -> Config:
    section = {"file": str(folder / "my file.csv"), "step": "1h"} | section
    return load(
        {
            "experiment": "own",
            "results": str(folder / "results"),
            "grid": [{"datasets": ["mine"], "models": ["DLinear"], "variants": ["published"]}],
            "data": {"custom": {"mine": section}},
        }
    )


def test_a_missing_option_is_measured_or_has_a_default(tmp_path: Path) -> None:
    write(tmp_path / "my file.csv")
    row = datasets.find(config(tmp_path), "mine")
    assert (row.rows, row.channels, len(row.sha256)) == (ROWS, 2, 1)
    assert (row.season, row.station, row.split) == (24, "mine", Shares(0.7, 0.2))
    assert (row.lookback, row.horizons, row.gaps) == (96, (96, 192, 336), Gaps())
    changed = {
        "step": "1h",
        "season": 12,
        "split": [200, 100, 100],
        "source": "grid",
        "lookback": 7,
    }
    row = datasets.find(config(tmp_path, **changed, horizons=[5], gaps="forward"), "mine")
    assert (row.season, row.station, row.split) == (12, "grid", Rows(200, 100, 100))
    assert (row.lookback, row.horizons, row.gaps) == (7, (5,), Gaps("forward", 12))


def test_names(tmp_path: Path) -> None:
    write(tmp_path / "my file.csv")
    own = config(tmp_path)
    assert datasets.names(own)[-1] == "mine"
    assert datasets.raw_files(own, "mine") == (tmp_path / "my file.csv",)
    assert datasets.raw_files(own, "ETTh1") == (Path("data/ETTh1.csv"),)
    assert datasets.raw_files(own, "synthetic") == ()
    assert len(datasets.raw_files(own, "FashionMNIST")) == 4
    files = {name: datasets.published(name) for name in ("mine", "ETTh1", "synthetic")}
    assert files == {"mine": (), "ETTh1": (DATASETS["ETTh1"],), "synthetic": ()}
    with pytest.raises(ConfigError, match="dataset 'yours' is not one of ETTh1, .*, mine"):
        datasets.find(own, "yours")


def test_home_and_variables_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "my file.csv")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINE", str(tmp_path))
    for file in ("~/my file.csv", "$HOME/my file.csv", "${MINE}/my file.csv"):
        assert datasets.find(config(tmp_path, file=file), "mine").rows == ROWS


# The section -> the error.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"rows": 5}, "data.custom.mine.rows: unknown key; valid here: file, step"),
    "step": ({"step": "1 hour"}, "data.custom.mine.step: '1 hour' is not a step: write a number"),
    "month": ({"step": "1M"}, "data.custom.mine.step: '1M' is not a step"),
    "shares": ({"split": [0.7, 0.2, 0.2]}, "data.custom.mine.split: [0.7, 0.2, 0.2]: expected"),
    "no test": ({"split": [0.7, 0.3, 0]}, "data.custom.mine.split: [0.7, 0.3, 0.0]: expected"),
    "gaps": ({"gaps": "mean"}, "data.custom.mine.gaps: should be 'refuse', 'interpolate' or 'f"),
    "limit": ({"gap_limit": 0}, "data.custom.mine.gap_limit: should be greater than or equal to 1"),
    "separator": ({"separator": ";;"}, "data.custom.mine.separator: "),
    "a point separates": ({"separator": "."}, "data.custom.mine.separator: '.' cannot separate ce"),
    "a digit separates": ({"separator": "1"}, "'1' cannot separate cells, since numbers, names or"),
    "a quote separates": ({"separator": '"'}, "cannot separate cells"),
    "a line break separates": ({"separator": "\n"}, "cannot separate cells"),
    "no ASCII": ({"separator": "é"}, "'é' cannot separate cells"),
    "date left out": ({"drop": ["date"]}, "data.custom.mine: drop: 'date' is also a column of `d"),
    "comma twice": ({"decimal": ","}, "data.custom.mine: separator and decimal are both ','"),
    "encoding": ({"encoding": "utf-99"}, "data.custom.mine.encoding: 'utf-99' is not the name"),
    "not a text": ({"encoding": "base64"}, "data.custom.mine.encoding: 'base64' is not the name"),
    "date format": ({"date": ["date", "OT"]}, "data.custom.mine: date_format: give the format of"),
    "fractions of seconds": ({"date_format": "%Y-%m-%d %H:%M:%S.%f"}, "does not say how a time is"),
    "not a format": ({"date_format": "YYYY-MM-DD"}, "data.custom.mine.date_format: 'YYYY-MM-DD' d"),
    "no year": ({"date_format": "%d.%m. %H:%M"}, "take %Y (or %y) and what follows from %m, %d"),
    "a stray sign": ({"date_format": "%Y-%m-%d %"}, "data.custom.mine.date_format: '%Y-%m-%d %'"),
    "no date": ({"date": [], "mean": True}, "data.custom.mine: date: without time stamps"),
    "source": ({"source": "a/b"}, "data.custom.mine.source: 'a/b' is not a name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_section_that_cannot_be_used(tmp_path: Path, case: str) -> None:
    section, message = REFUSED[case]
    with pytest.raises(ConfigError, match=re.escape(message)):
        config(tmp_path, **section)


@pytest.mark.parametrize("name", ["../mine", "my data", "x$(touch F)", "ETTh1"])
def test_names_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.custom"):
        load(
            {
                "experiment": "own",
                "grid": [{"datasets": ["ETTh1"], "models": ["DLinear"]}],
                "data": {"custom": {name: {"file": str(tmp_path / "a.csv"), "step": "1h"}}},
            }
        )


def test_a_file_that_cannot_be_used_names_its_key(tmp_path: Path) -> None:
    own = config(tmp_path)
    with pytest.raises(ConfigError, match=r"^data\.custom\.mine: .*my file\.csv"):
        datasets.find(own, "mine")
    write(tmp_path / "my file.csv", lost=(50,))
    with pytest.raises(ConfigError, match=r"^data\.custom\.mine: .*row 51 .*'load': 'NA' is not"):
        datasets.find(own, "mine")
    with pytest.raises(ConfigError, match=r"'DATE' is missing: .* `date` names columns"):
        datasets.find(config(tmp_path, date="DATE"), "mine")


def test_a_file_without_time_stamps(tmp_path: Path) -> None:
    (tmp_path / "my file.csv").write_text("a,b\n" + "1,2\n" * 50)
    row = datasets.find(config(tmp_path, date=[]), "mine")
    assert (row.rows, row.channels, row.mark) == (50, 2, False)


def test_a_file_that_is_too_short_for_the_grid(tmp_path: Path) -> None:
    write(tmp_path / "my file.csv")
    for split in ([0.7, 0.1, 0.2], [300, 50, 40]):
        with pytest.raises(ConfigError, match=r"grid\.0: mine/DLinear.*my file\.csv"):
            runs.plan(config(tmp_path, split=split))
    with pytest.raises(ConfigError, match="mine: 400 rows, but its splits need the first 500"):
        runs.plan(config(tmp_path, split=[300, 100, 100]))


def test_a_users_file_is_prepared_and_recorded(tmp_path: Path) -> None:
    path = write(tmp_path / "my file.csv", lost=(0, 100, 101, 102))
    own = config(tmp_path, gaps="forward", gap_limit=3)
    assert not is_prepared(own, "mine")
    prepared = series.load(prepare(own, "mine"))
    assert is_prepared(own, "mine")
    assert prepared.values.shape == (ROWS - 1, 2)
    assert (prepared.filled.dropped, prepared.filled.steps, prepared.filled.longest) == (1, 3, 3)
    record = yaml.safe_load((tmp_path / "results/own/prepared/mine.json").read_text())
    assert record["file"] == str(path)
    assert record["sha256"] == prepared.sha256 == datasets.find(own, "mine").sha256[0]
    assert (record["rows"], record["channels"], record["source"]) == (ROWS - 1, 2, "mine")
    assert record["gaps"] == {
        "rule": "forward",
        "limit": 3,
        "dropped": 1,
        "steps": 3,
        "values": 3,
        "longest": 3,
    }
    before = digests.settings_digest(own, "prepare", dataset="mine")
    write(path, lost=(100, 101, 102))
    os.utime(path, ns=(1, 1))
    assert digests.settings_digest(own, "prepare", dataset="mine") != before
    assert not is_prepared(own, "mine")


def test_a_cached_file_that_changed_is_not_prepared(tmp_path: Path) -> None:
    source = Path(__file__).parents[3] / "shared" / "datasets" / "ETTh1.csv"
    if not source.exists():
        pytest.skip(f"no copy of {source.name} in {source.parent}")
    own = load(
        {
            "experiment": "own",
            "results": str(tmp_path / "results"),
            "grid": [{"datasets": ["ETTh1"], "models": ["DLinear"]}],
            "data": {"cache": str(tmp_path)},
        }
    )
    content = source.read_bytes()
    (tmp_path / "ETTh1.csv").write_bytes(content)
    assert prepare(own, "ETTh1").exists()
    (tmp_path / "ETTh1.csv").write_bytes(
        content.replace(b"5.827000141143799", b"5.827000141143798")
    )
    with pytest.raises(series.DataError, match=r"ETTh1\.csv: SHA-256 .* delete it"):
        prepare(own, "ETTh1")


@pytest.mark.parametrize("bit", [0.3, 0.6, 0.9])
def test_a_prepared_file_that_changed_is_refused(tmp_path: Path, bit: float) -> None:
    write(tmp_path / "my file.csv")
    path = prepare(config(tmp_path), "mine")
    content = bytearray(path.read_bytes())
    content[int(len(content) * bit)] ^= 1
    path.write_bytes(content)
    with pytest.raises(series.DataError, match="not a prepared series .*delete it"):
        series.load(path)


def test_a_prepared_file_of_other_values_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "my file.csv")
    path = prepare(config(tmp_path), "mine")
    with np.load(path) as file:
        arrays = dict(file)
    arrays["values"][7, 1] += 1
    with path.open("wb") as opened:
        np.savez(opened, **arrays)
    with pytest.raises(series.DataError, match="its content has changed since it was written"):
        series.load(path)


@pytest.mark.parametrize(
    ("separator", "decimal", "lost"), [(",", ".", ()), (";", ",", ()), ("\t", ".", (0, 7, 8))]
)
def test_the_block_that_add_prints_can_be_used(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    separator: str,
    decimal: str,
    lost: tuple[int, ...],
) -> None:
    path = write(tmp_path / "my-file (1).csv", separator, decimal, lost)
    assert main(["add", str(path)]) == 0
    printed = capsys.readouterr().out
    assert f"{ROWS - (0 in lost)} rows x 2 channels" in printed
    block = yaml.safe_load(printed)["data"]
    assert list(block["custom"]) == ["my-file_1"]
    grid = [{"datasets": ["my-file_1"], "models": ["DLinear"]}]
    own = load({"experiment": "own", "grid": grid, "data": block})
    row = datasets.find(own, "my-file_1")
    assert (row.rows, row.channels) == (ROWS - (0 in lost), 2)
    assert row.gaps == (Gaps("forward", 2) if lost else Gaps())
    assert set(block["custom"]["my-file_1"]) <= {
        *("file", "step", "separator", "decimal", "gaps", "gap_limit")
    }


def test_a_control_character_in_a_name_leaves_the_block_readable(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv")
    path.write_text(path.read_text("utf-8").replace("load", "lo\x1b[31mad", 1), "utf-8")
    printed = add(path)
    assert "\x1b" not in printed and "lo?[31mad" in printed
    assert yaml.safe_load(printed)["data"]["custom"]["own"]["step"] == "1h"


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"PK\x03\x04\0\0", "an Excel file: save it as CSV"), (b"PAR1\0\0", "a Parquet file")],
)
def test_a_file_of_another_kind_is_named_by_its_kind(
    content: bytes, kind: str, tmp_path: Path
) -> None:
    (tmp_path / "own.csv").write_bytes(content)
    with pytest.raises(series.DataError, match=rf"own.csv: .*{kind}"):
        add(tmp_path / "own.csv")


def test_files_are_found_where_the_locale_is_not_utf_8(tmp_path: Path) -> None:
    file = write(tmp_path / "my folder" / "Meßwerte ü.csv")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def spat(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "spat", *words],
            env={**os.environ, **locale},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.decode("ascii")

    block = yaml.safe_load(spat("add", str(file)))["data"]
    (name,) = block["custom"]
    assert block["custom"][name]["file"] == str(file)
    results = tmp_path / "Läufe 1"
    values = {
        "experiment": "own",
        "results": str(results),
        "grid": [{"datasets": [name], "models": ["DLinear"], "horizons": [12]}],
        "data": {**block, "mirrors": []},
        "tracking": {"enabled": False},
    }
    path = tmp_path / "über.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    spat("prepare", "--config", str(path), "--dataset", name)
    prepared = series.load(results / "own" / "prepared" / f"{name}.npz")
    assert prepared.values.shape == (ROWS, 2)


def test_a_column_of_row_numbers_is_not_a_channel(tmp_path: Path) -> None:
    lines = write(tmp_path / "saved.csv").read_text().splitlines()
    rows = [f"{i}.0,{line}" for i, line in enumerate(lines[1:])]
    (tmp_path / "my file.csv").write_text("\n".join([f",{lines[0]},", *(f"{r}," for r in rows)]))
    printed = add(tmp_path / "my file.csv")
    assert "left out, since they are not numbers: a column without a name" in printed
    section = yaml.safe_load(printed)["data"]["custom"]["my_file"]
    assert datasets.find(config(tmp_path, **section), "mine").channels == 2
    with pytest.raises(ConfigError, match="column 1 has no name, .* `drop: \\[''\\]`"):
        datasets.find(config(tmp_path, **section | {"drop": []}), "mine")


def test_a_mean_over_more_steps_than_there_is_memory_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "my file.csv")
    path.write_text(path.read_text() + "9999-01-01 00:00:00,1,1\n")
    with pytest.raises(ConfigError, match="to 9999-01-01T00:00:00 there are .* steps of 1s, more"):
        datasets.find(config(tmp_path, step="1s", mean=True), "mine")


@pytest.mark.parametrize(
    ("header", "first", "second", "expected"),
    [
        ("day,time,a", "31/12/2020,23:00,1", "01/01/2021,00:00,2", "%d/%m/%Y %H:%M"),
        ("when,a", "12/31/2020 23:00:00,1", "01/01/2021 00:00:00,2", "%m/%d/%Y %H:%M:%S"),
        ("a,when", "1,31.12.2020 23:00", "2,01.01.2021 00:00", "%d.%m.%Y %H:%M"),
        ("year,month,day,hour,a", "2020,12,31,23,1", "2021,1,1,0,2", "%Y %m %d %H"),
    ],
)
def test_the_date_format_is_guessed(
    tmp_path: Path, header: str, first: str, second: str, expected: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\n{first}\n{second}\n")
    block = yaml.safe_load(add(path))["data"]["custom"]["a"]
    assert block["date_format"] == expected
    assert block["step"] == "1h"
    assert block["date"]


NOTES: dict[str, tuple[str, Callable[[int], str], str]] = {
    "thousands": (",", lambda i: f'"{1000 + i:,}"', "are not numbers: OT ('1,000')"),
    "a unit": (",", lambda i: f"{i} kW", "are not numbers: OT ('0 kW')"),
    "no values": (",", lambda i: "", "are not numbers: OT (no values)"),
    "thousands by a point": (
        ";",
        lambda i: f"{i * 1000:,}".replace(",", "."),
        "OT: '1.000' is read as 1: if the point separates thousands, remove it",
    ),
    "thousands by a point beside a decimal comma": (
        "; ,",
        lambda i: f"{1000 + i:,}".replace(",", "."),
        "are not numbers: OT ('1.000')",
    ),
    "a dash": (
        ",",
        lambda i: "-" if i % 9 == 3 else str(i),
        "values are missing (longest gap: 1 st",
    ),
    "None": (
        ",",
        lambda i: "None" if i % 9 == 3 else str(i),
        "values are missing (longest gap: 1 st",
    ),
    "-999": (
        ",",
        lambda i: "-999" if i % 9 == 3 else str(i),
        "OT is -999 in 45 rows: if that means",
    ),
}


@pytest.mark.parametrize("case", NOTES)
def test_add_and_advise_say_what_is_not_read_as_a_number(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    marks, cell, note = NOTES[case]
    path = write(tmp_path / "own.csv", *marks.split())
    lines = path.read_text().splitlines()
    rows = [line.rpartition(marks[0])[0] + marks[0] + cell(i) for i, line in enumerate(lines[1:])]
    path.write_text("\n".join([lines[0], *rows]) + "\n")
    printed = add(path)
    assert note in printed
    assert list(yaml.safe_load(printed)["data"]["custom"]) == ["own"]
    monkeypatch.setattr(advise, "_train", lambda *_: pytest.fail("it would train"))
    with pytest.raises((ConfigError, pytest.fail.Exception)) as caught:
        advise.advise(path, 12, lookback=24)
    assert note in capsys.readouterr().err + str(caught.value)


def test_dates_of_one_day_each_month_are_not_days(tmp_path: Path) -> None:
    # Only the order of day and month makes these rows equal steps.
    path = tmp_path / "own.csv"
    times = np.datetime64("2021-01-01") + np.arange(40)
    rows = [f"{str(t)[8:]}/{str(t)[5:7]}/{str(t)[:4]},{i}" for i, t in enumerate(times)]
    path.write_text("\n".join(["date,a", *rows]))
    block = yaml.safe_load(add(path))["data"]["custom"]["own"]
    assert (block["date_format"], block["step"]) == ("%d/%m/%Y", "1D")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a table: no separator"),
        (b"\0" * 100, "not a text file: it holds bytes of value 0"),
        (
            b"My station\ndate,a\n2021-01-01,1\n",
            "not a table: no separator (',', ';', '\\t', '|') "
            "splits its header and its rows into the same number of cells, at least two: the first "
            "lines are 'My station' and 'date,a'",
        ),
        (b"a,b\n1,2\n3,4\n", "no column of time stamps was found among a, b"),
        (
            b"date,a\n2021-01-01,1\n",
            "no column of time stamps was found among date, a (1 row of as",
        ),
        (
            b"date,a\n2021-01-01,1\n2021-02-30,2\n2021-03-01,3\n",
            "no column of time stamps was found "
            "among date, a ('date' has '2021-02-30' among times of the format %Y-%m-%d): correct",
        ),
        (
            b"at,time,a\n1,01:00+00:00,1\n2,02:00+00:00,2\n",
            "no column of time stamps was found among "
            "at, time, a ('time': '01:00+00:00' is not a time stamp: write all times in UTC",
        ),
        # As days, these would be 12 days of each year, with 354 days missing after them.
        (
            "\n".join(
                ["date,a", *(f"{m:02}/01/20{y:02},1" for y in range(20) for m in range(1, 13))]
            ).encode(),
            "the rows are calendar months, quarters or years",
        ),
        (b"date,a\n2021-01-02,1\n2021-01-01,2\n", "the rows run backwards in time"),
    ],
)
def test_add_names_the_options_that_it_cannot_guess(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    assert main(["add", str(path)]) == 1
    assert f"{path}: {message}" in capsys.readouterr().err
    assert main(["add", str(tmp_path / "nowhere.csv")]) == 1
    assert "nowhere.csv: no such file" in capsys.readouterr().err


def test_a_file_of_many_channels_is_examined_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    names = [f"c{i}" for i in range(20_000)]
    rows = [f"2020-01-01 0{hour}:00:00," + ",".join("1" * len(names)) for hour in range(3)]
    path.write_text("\n".join([",".join(["date", *names]), *rows]), encoding="utf-8")
    begun = process_time()
    assert f"3 rows x {len(names)} channels" in add(path)
    assert process_time() - begun < 30  # minutes, if each pair of columns may be a date
