"""preflight: check that the data of the default run exist or can be downloaded."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from spat.data.download import OFFLINE, available, faults
from spat.data.registry import Dataset, File
from spat.pipeline import datasets
from spat.pipeline.config import Config

# How long to wait for a host, in seconds.
TIMEOUT: Final = 5.0

NOTICE: Final = """\
{line}
NOTICE: {missing} can neither be copied ({folders}) nor downloaded
({hosts}). Running the experiment `offline` instead:
GENERATED DATA, results in results/offline/. For the real benchmark put copies
of the files into one of these folders, or connect, and run again.{wrong}
To draw its figures and build its report again, use the same arguments:
  make figures ARGS="{arguments}"
  make report ARGS="{arguments}"
{line}"""


def preflight(config: Config) -> tuple[str, str]:
    """(extra arguments for snakemake, notice for the user); both empty if there are data."""
    needed = {name for block in config.grid for name in block.datasets}
    needed |= {target for _, target in config.transfer.pairs}
    missing = [
        row
        for name in sorted(needed)
        for row in datasets.published(name)
        if not available(row, config.data.cache, config.data.mirrors)
    ]
    reachable = {host: _reachable(host) for host in _hosts(missing)}
    lost = [row for row in missing if not any(reachable[host] for host in _hosts([row]))]
    if not lost:
        return "", ""
    wrong = [fault for row in lost for fault in faults(row, config.data.cache, config.data.mirrors)]
    hosts = ", ".join(_hosts(lost))
    arguments = OFFLINE.removeprefix("snakemake --cores all ")
    notice = NOTICE.format(
        line="!" * 78,
        missing=", ".join(row.file for row in lost),
        folders=", ".join(map(str, (config.data.cache, *config.data.mirrors))),
        hosts=f"{hosts} unreachable" if hosts else "no address is known",
        wrong="".join(f"\n  {line}" for line in ["Not usable:", *wrong]) if wrong else "",
        arguments=arguments,
    )
    return arguments, notice


def _hosts(rows: Iterable[Dataset | File]) -> list[str]:
    return sorted({str(urlsplit(url).hostname) for row in rows for url in row.urls})


def _reachable(host: str) -> bool:
    try:
        with socket.create_connection((host, 443), timeout=TIMEOUT):
            return True
    except OSError:
        return False
