"""The names that the workflow lists are those that the registries draw and write."""

from pathlib import Path

from spat.reporting import names
from spat.reporting.figures import FIGURES
from spat.reporting.tables import TABLES

CAPTIONS = Path(__file__).parents[2] / "workflow" / "report"


def test_tables_and_figures_are_those_of_the_registries() -> None:
    assert tuple(TABLES) == names.TABLES
    assert tuple(FIGURES) == names.FIGURES


def test_each_has_a_caption_and_no_caption_is_left_over() -> None:
    captions = {path.stem for path in CAPTIONS.glob("*.rst") if path.read_text().strip()}
    assert captions == {*names.TABLES, *names.FIGURES}
