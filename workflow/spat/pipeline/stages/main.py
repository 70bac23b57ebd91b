"""main: write the main table as soon as all dense networks and masks of sites are trained."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from spat.files import write_text
from spat.pipeline.config import Config
from spat.pipeline.stages.collect import collect
from spat.study.pages.page import Absent
from spat.study.pages.reader import Frames
from spat.study.pages.registry import plain, rendered


def main(config: Config) -> str:
    """Write the main table to `main.md`, and return it as plain text.

    It needs neither masks of single heads nor latencies nor transfer, which follow it.

    Raises:
        FileNotFoundError: naming the file of a run that is missing.
    """
    with TemporaryDirectory() as folder:
        collect(config, sites=True, folder=Path(folder))
        frames = Frames.load(Path(folder), config.statistics)
        try:
            page = rendered("main", frames)["md"]
        except Absent as absent:
            page = f"{absent}\n"
        text = plain("main", frames)
    write_text(config.folder / "main.md", page)
    return text.rstrip()
