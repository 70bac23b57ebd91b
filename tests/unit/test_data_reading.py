"""Files of many formats: the values that are read, and the messages of those refused."""

import bz2
import gzip
import lzma
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from spat.data import raw
from spat.data.reading import measured, parse, read
from spat.data.registry import DATASETS, DataError, Dataset, Gaps, Shares, Table

SHARED = Path(__file__).parents[3] / "shared"
CASES = SHARED / "cases"

# A dataset of the user, before its file is measured.
OWN = Dataset(
    name="own",
    file="own.csv",
    urls=(),
    sha256=(),
    rows=0,
    channels=0,
    step="1h",
    split=Shares(0.7, 0.2),
    season=24,
    station="own",
    format="csv",
    mark=True,
    table=Table(encodings=("utf-8-sig",)),
)


def table(**changes: object) -> Dataset:
    return replace(OWN, table=replace(OWN.table, **changes))


def stamps(rows: int, step: str = "h") -> list[str]:
    times = np.datetime64("2021-03-27T00:00:00") + np.arange(rows).astype(f"m8[{step}]")
    return [str(time).replace("T", " ") for time in times.astype("M8[s]")]


def text(times: list[str] | None = None, separator: str = ",", end: str = "\n") -> str:
    """A valid file: header, then a row for each time stamp."""
    rows = [["date", "load", "OT"]]
    rows += [[t, f"{i}.5", f"-{i}"] for i, t in enumerate(times or stamps(30))]
    return "".join(separator.join(row) + end for row in rows)


def without(rows: slice) -> list[str]:
    times = stamps(30)
    del times[rows]
    return times


# A file -> the dataset that describes it. All hold the same 30 rows.
READ: dict[str, tuple[str | bytes, Dataset]] = {
    "plain": (text(), OWN),
    "CR line ends": (text(end="\r"), OWN),
    "CRLF line ends": (text(end="\r\n"), OWN),
    "no end of the last line": (text().rstrip("\n"), OWN),
    "blank line at the end": (text() + "\n", OWN),
    "T between date and time": (text([t.replace(" ", "T") for t in stamps(30)]), OWN),
    "T and Z": (text([t.replace(" ", "T") + "Z" for t in stamps(30)]), OWN),
    "no seconds": (text([t[:-3] for t in stamps(30)]), OWN),
    "T, no seconds": (text([t[:-3].replace(" ", "T") for t in stamps(30)]), OWN),
    "slashes and seconds": (text([t.replace("-", "/") for t in stamps(30)]), OWN),
    "slashes, no seconds": (text([t[:-3].replace("-", "/") for t in stamps(30)]), OWN),
    "semicolons": (text(separator=";"), table(separator=";")),
    "tabs": (text(separator="\t"), table(separator="\t")),
    "decimal comma": (text(separator=";").replace(".5", ",5"), table(separator=";", decimal=",")),
    "line break in a quoted name": (text().replace("load", '"lo\nad"', 1), OWN),
    "byte order mark": ("\ufeff" + text(), OWN),
    "padded numbers": (
        text().replace(",-", ',"  -').replace("\n", '"\n').replace('OT"', "OT"),
        OWN,
    ),
    "UTF-16": (text().encode("utf-16"), table(encodings=("utf-16",))),
    "UTF-16, little end first": (
        text().encode("utf-16-le"),
        table(encodings=("utf-16-le",)),
    ),
    "EBCDIC": (text().encode("cp037"), table(encodings=("cp037",))),
    "latin-1": (text().replace("load", "Größe").encode("latin-1"), table(encodings=("latin-1",))),
    "day first": (
        text([f"{t[8:10]}.{t[5:7]}.{t[:4]} {t[11:16]}" for t in stamps(30)]),
        table(date_format="%d.%m.%Y %H:%M"),
    ),
    "single digits": (
        text([f"{t[:4]}/{int(t[5:7])}/{int(t[8:10])} {int(t[11:13])}:00" for t in stamps(30)]),
        OWN,
    ),
    "blanks around the time stamp": (text([f" {t} " for t in stamps(30)]), OWN),
    "two forms": (text([t if i % 2 else t[:-3] for i, t in enumerate(stamps(30))]), OWN),
    "names of months": (
        text([f"{t[8:10]} {'Mar'} {t[2:4]} {t[11:16]}" for t in stamps(30)]),
        table(date_format="%d %b %y %H:%M"),
    ),
    "date and time in two columns": (
        text([t.replace(" ", ",") for t in stamps(30)]).replace("date", "day,time"),
        table(date=("day", "time"), date_format="%Y-%m-%d %H:%M:%S"),
    ),
    "a column of text left out": (
        text().replace("date,", "wind,date,").replace("\n2021", "\nNW,2021"),
        table(drop=("wind",)),
    ),
    "gzipped": (gzip.compress(text().encode()), OWN),
    "xz": (lzma.compress(text().encode()), OWN),
}


@pytest.mark.parametrize("case", READ)
def test_read(tmp_path: Path, case: str) -> None:
    content, dataset = READ[case]
    path = tmp_path / "my file.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    series = parse(dataset, path)
    assert series.names[-1] == "OT"
    np.testing.assert_array_equal(series.values[:, 0], np.arange(30) + 0.5)
    np.testing.assert_array_equal(series.values[:, 1], -np.arange(30))
    assert series.times is not None
    assert [str(time) for time in series.times] == [t.replace(" ", "T") for t in stamps(30)]
    row = measured(dataset, path)
    assert (row.rows, row.channels, row.sha256) == (30, 2, (series.sha256,))


# A file -> the error. The dataset is hourly and has no gaps.
REFUSED: dict[str, tuple[str | bytes, str]] = {
    "newest first": (
        text(stamps(30)[::-1]),
        ": the rows run backwards in time, from 2021-03-28T05",
    ),
    "shuffled": (
        text([*stamps(30)[5:], *stamps(30)[:5]]),
        ", row 26: 2021-03-27T00:00:00 comes after 2021-03-28T05:00:00, so the rows are out of",
    ),
    "doubled stamp": (
        text([*stamps(30)[:8], stamps(30)[7], *stamps(30)[8:]]),
        ", row 9: the time stamp 2021-03-27T07:00:00 is that of the row before",
    ),
    "quarter of an hour": (
        text([str(np.datetime64("2021-03-27T00:00:00") + 15 * i * 60) for i in range(30)]),
        ": the rows are 15min apart, but the step is 1h: set `step: 15min`",
    ),
    "days": (text(stamps(30, "D")), ": the rows are 1D apart, but the step is 1h"),
    "gap": (
        text(without(slice(10, 14))),
        ", row 11: 2021-03-27T14:00:00 comes 5h after 2021-03-27T09:00:00, so 4 rows are missing: "
        "set `gaps: forward`",
    ),
    "off the grid": (
        text([*stamps(30)[:9], "2021-03-27 09:20:00", *stamps(30)[10:]]),
        ", row 10: 2021-03-27T09:20:00 comes 80min after 2021-03-27T08:00:00, which is not a",
    ),
    "semicolons": (text(separator=";"), ": the header 'date;load;OT' is separated by ';', not by"),
    "tabs": (
        text(separator="\t"),
        r""": the header 'date\tload\tOT' is separated by "\t", not by""",
    ),
    "decimal comma": (
        text().replace("7.5,-7", '"7,5",-7'),
        ": row 8 (line 9), column 'load': '7,5' is not a number; for a decimal comma set `decimal",
    ),
    "underscore": (
        text().replace("7.5", "1_000"),
        ": row 8 (line 9), column 'load': '1_000' is not a number: remove the signs",
    ),
    "thousands": (
        text().replace("7.5", "1 000"),
        ": row 8 (line 9), column 'load': '1 000' is not",
    ),
    "text": (text().replace("7.5", "NW"), ": row 8 (line 9), column 'load': 'NW' is not a number"),
    "row of a quoted name": (
        text().replace("load", '"lo\nad"', 1).replace("7.5", "x"),
        ": row 8 (line 10), column 'lo ad': 'x' is not a number",
    ),
    "month first": (
        text([f"{t[5:7]}/{t[8:10]}/{t[:4]} {t[11:16]}" for t in stamps(30)]),
        ": row 1 (line 2), column 'date': '03/27/2021 00:00' is not a time stamp; known formats",
    ),
    "two digits of a year": (
        text([t[2:] for t in stamps(30)]),
        ": row 1 (line 2), column 'date': '21-03-27 00:00:00' is not a time stamp; known formats",
    ),
    "other name of the date": (
        text().replace("date", "time"),
        ": column 'date' is missing: the header is time, load, OT; `date` names columns",
    ),
    "open quote": (
        text().replace("7.5", '"7.5'),
        r": row 8 (line 9), column 'load': '7.5,-7\n2021-03-27 08:00:00,8.5,-8\n2021-03-27 09:0"
        "0:00,9.5,-9...' spans lines: is a quote not closed?",
    ),
    "too large": (
        text().replace("7.5", "1e19"),
        ": row 8 (line 9), column 'load': '1e19' is above",
    ),
    "line break in a cell": (
        text().replace("7.5", '"7.5\n"'),
        r": row 8 (line 9), column 'load': '7.5\n' spans lines: is a quote",
    ),
    "long cell": (
        text().replace("7.5", "x" * 5000),
        f": row 8 (line 9), column 'load': '{'x' * 60}...' is not a number",
    ),
    "wide digits": (text().replace("7.5", "７"), ": row 8 (line 9), column 'load': '７' is not a"),
    "months": (
        text([f"{1990 + i // 12}-{i % 12 + 1:02}-01 00:00:00" for i in range(30)]),
        ": the rows are calendar months, quarters or years, which differ in length: set `date: []`",
    ),
    "row numbers": (
        re.sub(r"(?m)^", "0,", text()).replace("0,date", ",date").removesuffix("0,"),
        ": column 1 has no name, as the row numbers that pandas writes: leave it out with `drop",
    ),
    "blanks": (
        text([t.replace(" ", "T") for t in stamps(30)]).replace(",", " "),
        ": the header 'date load OT' is separated by ' ', not by ',': set `separator: ' '`",
    ),
    "UTF-16": (text().encode("utf-16"), ": the text is UTF-16: set `encoding: utf-16`"),
    "UTF-32": (text().encode("utf-32"), ": the text is UTF-32: set `encoding: utf-32`"),
    "latin-1": (
        text().replace("load", "Größe").encode("latin-1"),
        ": byte 7 is not utf-8: set `encoding` (such as latin-1, cp1252 or utf-16)",
    ),
    "zeros": (bytes(5000), ": not a text file: it holds bytes of value 0"),
    "gzip in gzip": (
        gzip.compress(gzip.compress(text().encode())),
        ": compressed by gzip twice:",
    ),
    "more after gzip": (
        gzip.compress(text().encode()) + b"xxxx",
        ": cannot be read: Not a gz",
    ),
    "bzip2": (bz2.compress(text().encode()), ": compressed by bzip2: unpack it"),
    "Zstandard": (b"\x28\xb5\x2f\xfd" + bytes(50), ": compressed by Zstandard: unpack it"),
    "Parquet": (b"PAR1" + bytes(50), ": a Parquet file: save it as CSV"),
    "NumPy": (b"\x93NUMPY" + bytes(50), ": an array of NumPy: save it as CSV"),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        ": a pointer of Git LFS, not the file itself: run `git lfs pull`",
    ),
    "a column twice": (text().replace("load", "OT"), ": two columns are named 'OT': rename one"),
    "the date twice": (text().replace("load", "date"), ": two columns are named 'date': rename"),
    "no-break space": (
        text().replace("7.5", "7.5\xa0"),
        r": row 8 (line 9), column 'load': '7.5\xa0' is not a number",
    ),
    "a byte of value 0 far on": (
        text(stamps(300)) + "\0",
        r": row 301 (line 302), column 'date': '\x00' is not a time stamp",
    ),
    "Excel": (b"PK\x03\x04" + bytes(300), ": a zip archive or an Excel file: save it as CSV"),
    "long name": (b"date," + b"a" * 300_000, ", header: not a table of numbers (field larger than"),
    "empty": (b"", ": empty, or without a header"),
    "header alone": ("date,load,OT\n", ": 0 rows x 2 channels, but both must be at least 1"),
    "no channel": ("date\n2021-03-27 00:00:00\n", ": 0 rows x 0 channels, but both must be"),
    "damaged gzip": (
        gzip.compress(text().encode())[:-20],
        ": the compressed data end early or are",
    ),
    "damaged xz": (lzma.compress(text().encode())[:-20], ": the compressed data end early or are"),
    "web page": ("<!DOCTYPE html><html></html>", ": a web page (HTML), not data"),
    "thousands with commas": (
        text().replace("7.5", '"1,250"'),
        ": row 8 (line 9), column 'load': '1,250' is not a number: remove the commas between",
    ),
    "a dash": (
        text().replace("7.5", "-"),
        ": row 8 (line 9), column 'load': '-' is not a number (`gaps` says how missing values",
    ),
    "a unit": (
        text().replace("7.5", "7.5 kW"),
        ": row 8 (line 9), column 'load': '7.5 kW' is not a number: correct it, or leave",
    ),
    "an offset": (
        text([f"{t}+01:00" for t in stamps(30)]),
        ": row 1 (line 2), column 'date': '2021-03-27 00:00:00+01:00' is not a time stamp: write "
        "all times in UTC, without an offset",
    ),
    "a zone": (
        text([f"{t} CET" for t in stamps(30)]),
        ": row 1 (line 2), column 'date': '2021-03-27 "
        "00:00:00 CET' is not a time stamp: write all times in UTC",
    ),
    "fractions": (
        text([f"{t}.000Z".replace(" ", "T") for t in stamps(30)]),
        ": row 1 (line 2), column 'date': '2021-03-27T00:00:00.000Z' is not a time stamp: write it "
        "without fractions of a second",
    ),
    "hour 24": (
        text().replace("2021-03-28 00:", "2021-03-27 24:"),
        ": row 25 (line 26), column 'date': '2021-03-27 24:00:00' is not a time stamp: the hours",
    ),
    "seconds since 1970": (
        text([str(1616803200 + 3600 * i) for i in range(30)]),
        ": row 1 (line 2), column 'date': '1616803200' is not a time stamp: write dates such as",
    ),
    "days since 1900": (
        text([f"{44282 + i / 24:.5f}" for i in range(30)]),
        ": row 1 (line 2), column 'date': '44282.00000' is not a time stamp: write dates such as",
    ),
    "a year too far": (
        text().replace("2021-03-28 05:", "9021-03-28 05:"),
        ", row 30: 9021-03-28T05:00:00 comes 61360729h after 2021-03-28T04:00:00, so 61360728 rows "
        "are missing: more than the file has; correct the time stamp",
    ),
    "a title": (
        "My station\n" + text(),
        ": column 'date' is missing: the header is My station; `date` names columns; remove the "
        "lines above the header",
    ),
    "a comment": (
        "# my station\n# 2021\n" + text(),
        ": column 'date' is missing: the header is # my",
    ),
    "a line for Excel": (
        "sep=;\n" + text(separator=";"),
        ": column 'date' is missing: the header is",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    content, message = REFUSED[case]
    path = tmp_path / "own.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match="^" + re.escape(f"{path}{message}")) as caught:
        measured(OWN, path)
    assert "\n" not in str(caught.value)


# The first day of the rows, and the time stamp of row 10, which Arrow reads as another time.
IMPOSSIBLE: dict[str, tuple[str, str]] = {
    "30 February": ("2020-02-29", "2020-02-30 00:00:00"),
    "29 February of no leap year": ("2021-02-28", "2021-02-29 00:00:00"),
    "31 April": ("2021-04-30", "2021-04-31 00:00:00"),
    "second 60": ("2021-03-27", "2021-03-27 08:59:60"),
    "second 61": ("2021-03-27", "2021-03-27 08:59:61"),
    "without seconds": ("2021-06-30", "2021-06-31 00:00"),
    "with slashes": ("2021-06-30", "2021/6/31 0:00"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a_time_that_does_not_exist_is_refused(tmp_path: Path, case: str) -> None:
    day, stamp = IMPOSSIBLE[case]
    # The wrong reading is one step after the row before, so that no other check finds it.
    offset = 9 if "second" in case and "without" not in case else 24
    times = np.datetime64(day) + np.arange(30).astype("m8[h]")
    rows = [str(t.astype("M8[s]")).replace("T", " ") for t in times]
    rows[offset] = stamp
    path = tmp_path / "own.csv"
    path.write_text(text(rows))
    where = f"{path}: row {offset + 1} (line {offset + 2}), column 'date': {stamp!r} is a time"
    with pytest.raises(DataError, match="^" + re.escape(f"{where} that does not exist (")):
        measured(OWN, path)


def test_all_rows_of_a_long_file_are_checked_fast(tmp_path: Path) -> None:
    rows = stamps(500_000, "s")
    path = tmp_path / "own.csv"
    path.write_text(text(rows))
    begun = time.process_time()
    assert measured(replace(OWN, step="1s"), path).rows == len(rows)
    checked = time.process_time()
    for stamp in rows:
        datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S")
    assert checked - begun < time.process_time() - checked
    rows[-1] = re.sub(r":\d\d$", ":60", rows[-1])
    path.write_text(text(rows))
    with pytest.raises(DataError, match=r"own.csv: row 500000 \(line 500001\), column 'date'"):
        measured(replace(OWN, step="1s"), path)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_pipe, "a pipe or a device, not a regular file"),
        (_endless, "a pipe or a device, not a regular file"),
        (Path.mkdir, "a folder"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
    ids=["pipe", "device", "folder", "loop"],
)
def test_only_regular_files_are_opened(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "own.csv"
    make(path)
    with pytest.raises(DataError, match=re.escape(f"{path}: cannot be read: {reason}")):
        parse(OWN, path)
    if Path("/proc/kmsg").exists():  # a regular file of the kernel, of which a read never returns
        with pytest.raises(DataError, match="/proc/kmsg: empty"):
            parse(OWN, Path("/proc/kmsg"))
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file"):
        parse(OWN, tmp_path / "nowhere.csv")


def test_a_file_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "UNPACKED_LIMIT", 1 << 20)
    path = tmp_path / "own.csv"
    for pack in (gzip.compress, lzma.compress):
        path.write_bytes(pack(bytes(3 << 20)))
        with pytest.raises(DataError, match="cannot be read: unpacks to more than"):
            parse(OWN, path)
    path.write_bytes(gzip.compress(bytes(3 << 20)))
    with pytest.raises(OSError, match="unpacks to more than"):
        raw.fingerprint(path)
    path.write_bytes(text().encode() + b"\n" * (3 << 20))  # its size can be seen
    assert len(parse(OWN, path).values) == 30


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.csv", tmp_path / "a.csv.gz"
    plain.write_text(text())
    packed.write_bytes(gzip.compress(text().encode()))
    assert raw.fingerprint(plain) == raw.fingerprint(packed) == raw.load(packed).sha256
    packed.write_bytes(lzma.compress(text().encode()))
    assert raw.load(packed).content == plain.read_bytes()
    assert raw.fingerprint(packed) == raw.load(packed).sha256 != raw.fingerprint(plain)


# Changes of the published file.
SPOILT: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "one digit": lambda lines: [*lines[:500], lines[500].replace(b"2", b"3", 1), *lines[501:]],
    "two columns swapped": lambda lines: [
        b",".join([*(cells := line.rstrip(b"\n").split(b","))[:1], cells[2], cells[1], *cells[3:]])
        + b"\n"
        for line in lines
    ],
    "rows reversed": lambda lines: [lines[0], *lines[:0:-1]],
    "a day missing": lambda lines: [*lines[:1000], *lines[1024:]],
    "the last row missing": lambda lines: lines[:-1],
    "a blank line more": lambda lines: [*lines, b"\n"],
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_published_file_that_was_changed_is_refused(tmp_path: Path, case: str) -> None:
    dataset = DATASETS["ETTh1"]
    source = SHARED / "datasets" / dataset.file
    if not source.exists():
        pytest.skip(f"no copy of {source.name} in {source.parent}")
    path = tmp_path / dataset.file
    lines = source.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines))
    assert read(dataset, path).values.shape == (17420, 7)
    path.write_bytes(b"".join(SPOILT[case](lines)))
    with pytest.raises(DataError, match=r"is not the ETTh1 that is expected .*delete it"):
        read(dataset, path)


def test_another_dataset_is_refused() -> None:
    path = SHARED / "datasets" / DATASETS["ETTh2"].file
    if not path.exists():
        pytest.skip(f"no copy of {path.name} in {path.parent}")
    with pytest.raises(DataError, match="is not the ETTh1 that is expected"):
        read(DATASETS["ETTh1"], path)


# The step between rows is checked for these files; irregular time stamps are listed.
@pytest.mark.parametrize("name", ["ETTh1", "ETTm2", "Weather", "Exchange", "ILI", "Appliances"])
def test_irregular_time_stamps_of_published_files_are_listed(name: str) -> None:
    dataset = DATASETS[name]
    path = SHARED / "datasets" / dataset.file
    if not path.exists():
        pytest.skip(f"no copy of {path.name} in {path.parent}")
    assert dataset.irregular is not None
    assert read(dataset, path).times is not None
    for known in dataset.irregular:
        rest = tuple(stamp for stamp in dataset.irregular if stamp != known)
        with pytest.raises(DataError, match=re.escape(known)):
            read(replace(dataset, irregular=rest), path)


def test_missing_rows_and_values_are_gaps_if_the_rule_fills_them(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    lines = text(without(slice(10, 14))).splitlines()
    lines[1] = lines[1].replace("0.5", "NA")
    lines[5] = lines[5].replace("4.5", "")
    path.write_text("\n".join(lines))
    series = parse(replace(OWN, gaps=Gaps("forward", limit=4)), path)
    assert series.dropped == 1
    assert series.times is not None
    assert series.values.shape == (29, 2)
    assert len(series.times) == 29
    assert np.argwhere(np.isnan(series.values)).tolist() == [
        [3, 0],
        *[[row, channel] for row in range(9, 13) for channel in (0, 1)],
    ]
    message = "so 4 rows are missing: more than the 3 of `gap_limit`"
    with pytest.raises(DataError, match=re.escape(message)):
        parse(replace(OWN, gaps=Gaps("forward", limit=3)), path)
    path.write_text(text().replace("7.5", "inf"))
    with pytest.raises(DataError, match="'inf' is not a finite number"):
        parse(replace(OWN, gaps=Gaps("forward", limit=4)), path)


def test_rows_are_averaged_over_the_steps(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    rows = ["00:50:00,1,", "00:55:00,2,4", "01:00:00,5,6", "03:10:00,7,8", "03:20:00,?,10"]
    path.write_text("date,a,b\n" + "".join(f"2021-03-27 {row}\n" for row in rows))
    dataset = replace(table(mean=True), gaps=Gaps("forward", limit=1))
    series = parse(dataset, path)
    assert series.times is not None
    assert [str(time)[11:13] for time in series.times] == ["00", "01", "02", "03"]
    np.testing.assert_array_equal(
        series.values, [[1.5, 4.0], [5.0, 6.0], [np.nan, np.nan], [7.0, 9.0]]
    )
