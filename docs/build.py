"""Write the documentation from the docstrings: `python docs/build.py [FOLDER]` (default: site)."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

import spat

# The modules of the three uses, by folder.
MODULES = (
    "spat",
    # my model
    "spat.attention.discovery",
    "spat.attention.errors",
    "spat.scoring.foreign",
    "spat.scoring.names",
    "spat.surgery.foreign",
    # my data
    "spat.pipeline.advise",
    "spat.study.advice",
    "spat.surgery.forecast",
    "spat.data.guess",
    "spat.data.gaps",
    # the paper
    "spat.attention.mask",
    "spat.attention.site",
    "spat.attention.views",
    "spat.scoring.scores",
    "spat.surgery.choose",
    "spat.surgery.cut",
    "spat.surgery.storage",
    "spat.tasks.task",
    "spat.tasks.forecasting",
    "spat.tasks.imaging",
    "spat.models.base",
    "spat.models.registry",
    "spat.models.settings",
    "spat.models.vit",
    "spat.data.registry",
    "spat.data.series",
    "spat.data.windows",
    "spat.data.images",
    "spat.training.loop",
    "spat.training.device.costs",
    "spat.pipeline.config",
    "spat.pipeline.frames",
)


def build(folder: Path) -> None:
    """Write one page per module; `index.html` links to the page of `spat`."""
    for name in spat.__all__:
        # pdoc does not see names that a module imports at their first use (`__getattr__`).
        setattr(spat, name, getattr(spat, name))
    pdoc.render.configure(docformat="google", footer_text=f"spat {spat.__version__}")
    with warnings.catch_warnings():
        # Types of a NamedTuple's constructor, which pdoc looks up in the wrong module.
        warnings.filterwarnings("ignore", "Error parsing type annotation")
        warnings.filterwarnings("error", "Found .* in spat.__all__")
        pdoc.pdoc(*MODULES, output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "site"))
