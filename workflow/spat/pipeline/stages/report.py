"""tables, figures, page, summary: write the pages of the frames in `data/`."""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from spat.files import replacing, write_text
from spat.pipeline import runs
from spat.pipeline.cache import Finished
from spat.pipeline.config import Config
from spat.pipeline.runs import Run


def tables(config: Config) -> None:
    """Write every table that the frames have data for, in CSV, Markdown and LaTeX."""
    from spat.study.pages.reader import Frames
    from spat.study.pages.registry import write_all

    frames = Frames.load(config.folder / "data", config.statistics)
    write_all("table", frames, config.folder / "tables")


def figures(config: Config) -> None:
    """Write every figure that the frames have data for, in PNG, PDF and SVG.

    `not_made.md` then lists the tables and figures that were not written, with the reasons.
    """
    from spat.study.pages.reader import Frames
    from spat.study.pages.registry import not_made, write_all

    frames = Frames.load(config.folder / "data", config.statistics)
    write_all("figure", frames, config.folder / "figures")
    write_text(config.folder / "not_made.md", not_made(frames, config.folder))


def page(config: Config, folder: Path | None = None) -> Path:
    """Write `index.html`, the results as one web page, from the frames in `data/`.

    `folder` contains the frames; by default it is the folder of the experiment.

    Raises:
        FileNotFoundError: naming the missing frame.
    """
    from spat.study.pages import webpage
    from spat.study.pages.reader import Frames

    folder = folder or config.folder
    frames = Frames.load(folder / "data", config.statistics)
    path = folder / "index.html"
    write_text(path, webpage.index(frames, folder.name))
    return path


def loss_curves(config: Config, run: Run) -> Path | None:
    """Draw the loss curves of pre-training next to its files, for tracking.

    Returns None if nothing was trained.
    """
    from spat.study.pages.page import WORDING
    from spat.study.qualitative import run_history

    folder = runs.folder(config, run, "pretrain")
    history = Finished(folder).table("history.csv")
    if history.empty:
        return None
    keys = runs.columns(config, run)
    words = WORDING[str(keys["task"])]
    window = words.window(run.setting)._asdict()
    history = history.rename(columns=words.columns).assign(**keys, **window)
    figure = words.figure(run_history(history.assign(stage="pretrain", mask="", order=0)))
    path = folder / "history.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def table_so_far(config: Config) -> str:
    """The main table of the complete runs, as plain text; no file of the results is changed."""
    from spat.pipeline.stages.collect import collect
    from spat.study.pages.reader import Frames
    from spat.study.pages.registry import plain

    with TemporaryDirectory() as folder:
        with redirect_stderr(StringIO()):  # it would name each incomplete run
            collect(config, finished=True, folder=Path(folder))
        return plain("main", Frames.load(Path(folder), config.statistics)).rstrip()


def summary(config: Config) -> str:
    """The main table as plain text, and the folders of all results, for the end of a run."""
    from spat.pipeline import tracking
    from spat.study.pages.reader import Frames
    from spat.study.pages.registry import plain

    main = plain("main", Frames.load(config.folder / "data", config.statistics))
    places = {
        "frames": config.folder / "data",
        "tables": config.folder / "tables",
        "figures": config.folder / "figures",
        "runs": config.folder,
        "tracking": tracking.place(config),
    }
    lines = [f"  {name:<9} {place}" for name, place in places.items()]
    return "\n".join([main.rstrip(), "", *lines])
