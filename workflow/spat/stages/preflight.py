"""preflight: is there data for the default run, or a network to fetch it from?"""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from spat.config import Config
from spat.data.download import OFFLINE, available
from spat.data.registry import DATASETS

NOTICE = """\
{line}
NOTICE: {missing} can be had neither from a copy ({folders}) nor from the
network ({hosts} unreachable). Running the experiment `offline` instead:
GENERATED DATA, results in results/offline/. For the real benchmark put copies
of the files into one of those folders, or connect, and run again.
{line}"""


def preflight(config: Config, timeout: float = 5.0) -> tuple[str, str]:
    """(extra arguments for snakemake, notice for the user); both empty when the data can be had."""
    needed = {name for block in config.grid for name in block.datasets}
    needed |= {target for _, target in config.transfer.pairs}
    missing = [
        row
        for name in sorted(needed)
        if (row := DATASETS[name]).urls
        and not available(row, config.data.cache, config.data.mirrors)
    ]
    hosts = sorted({str(urlsplit(url).hostname) for row in missing for url in row.urls})
    if not missing or any(_reachable(host, timeout) for host in hosts):
        return "", ""
    notice = NOTICE.format(
        line="!" * 78,
        missing=", ".join(row.file for row in missing),
        folders=", ".join(map(str, (config.data.cache, *config.data.mirrors))),
        hosts=", ".join(hosts),
    )
    return OFFLINE.removeprefix("snakemake --cores all "), notice


def _reachable(host: str, timeout: float) -> bool:
    try:
        with socket.create_connection((host, 443), timeout=timeout):
            return True
    except OSError:
        return False
