"""The figures: their content and their legibility."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from committed import REFERENCE, read
from frame_builder import EMPTY, FULL, KEPT, build, error, frames_of, head_mask, nested, score
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from spat.attention.mask import Mask
from spat.models.registry import MODELS
from spat.pipeline.config import read_file
from spat.scoring.names import CRITERIA
from spat.study import methods, reproduction
from spat.study.pages import style, webpage
from spat.study.pages.page import Absent
from spat.study.pages.reader import Frames
from spat.study.pages.registry import FIGURES, draw, tables, write_figure
from spat.study.qualitative import run_history
from spat.study.statistics.bootstrap import relative_change
from spat.study.statistics.cells import RUN

ETT = ("ETTh1", "ETTh2", "ETTm1", "ETTm2")
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "one": {
        "datasets": ("ETTh1",), "models": ("iTransformer",), "seeds": (0,), "pairs": ()
    },
    "orders": {"models": ("iTransformer", "DLinear"), "orders": 3, "seeds": (0, 1)},
    "many": {
        "datasets": (*ETT, "Weather", "Electricity", "Exchange", "Traffic"),
        "horizons": (96, 192, 336, 720),
        "seeds": (0,),
        "pairs": (("ETTh1", "ETTh2"), ("ETTm1", "ETTh2"), ("ETTm2", "ETTm1")),
    },
}  # fmt: skip
# Figures that are not made, since the experiment has no data for them.
ABSENT = {
    ("one", "transfer"),
    *((kind, name) for kind in KINDS for name in ("robustness", "controls")),
    *((kind, "rivals") for kind in ("one", "orders")),
    ("one", "reproduction"),
    *(
        (kind, name)
        for kind in KINDS
        if kind != "many"
        for name in ("critical_difference", "by_source")
    ),
}
MADE = [(kind, name) for kind in KINDS for name in FIGURES if (kind, name) not in ABSENT]


def drawn(name: str, kind: str = "default") -> Figure:
    return _drawn(name, kind)


@cache
def _drawn(name: str, kind: str) -> Figure:
    figure = draw(name, frames_of(**KINDS[kind]))
    with style.drawing():
        figure.draw_without_rendering()
    return figure


def panels(figure: Figure) -> dict[str, Axes]:
    return {axis.get_title(): axis for axis in figure.axes}


def texts(figure: Figure) -> list[Text]:
    shown = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    return [text for text in shown if text.get_window_extent().width > 0]


def overlap(one: Bbox, other: Bbox) -> float:
    """Pixels by which two boxes overlap."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return min(width, height)


# every figure


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_shows_data_and_names_its_axes(name: str, kind: str) -> None:
    if (kind, name) in ABSENT:
        with pytest.raises(Absent):
            drawn(name, kind)
        return
    figure = drawn(name, kind)
    assert figure.get_size_inches()[0] == pytest.approx(3.4)
    assert figure.get_size_inches()[1] <= 9.0
    assert 1 <= len(figure.axes) <= 2 * style.FACETS
    for axis in figure.axes:
        assert axis.has_data(), axis.get_title()
    for part in ("xlabel", "ylabel", "title"):
        assert any(getattr(axis, f"get_{part}")() for axis in figure.axes), part


@pytest.mark.parametrize(("kind", "name"), MADE)
def test_no_text_of_a_figure_is_cut_off(name: str, kind: str) -> None:
    assert_inside(drawn(name, kind))


@pytest.mark.parametrize(
    "path", sorted((REFERENCE / "vision" / "figures").glob("*.png")), ids=lambda path: path.stem
)
def test_no_text_is_cut_off_in_the_words_of_another_task(path: Path) -> None:
    figure = draw(path.stem, read(REFERENCE / "vision"))
    with style.drawing():
        figure.draw_without_rendering()
    assert_inside(figure, padding=3)


def assert_inside(figure: Figure, padding: int = 1) -> None:
    """All text is inside the figure, up to `padding` pixels."""
    box = figure.bbox.padded(padding)
    ticks = {id(text) for axes in figure.axes for text in _tick_labels(axes)}
    for text in texts(figure):
        extent = text.get_window_extent()
        inside = box.x0 <= extent.x0 and extent.x1 <= box.x1
        inside &= box.y0 <= extent.y0 and extent.y1 <= box.y1
        assert inside or id(text) in ticks, f"{text.get_text()!r} at {extent.bounds}"
    # The tick labels that are drawn, and all other texts.
    tight = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert tight.x0 >= box.x0 and tight.x1 <= box.x1, tight
    assert tight.y0 >= box.y0 and tight.y1 <= box.y1, tight


def _tick_labels(axes: Axes) -> list[Text]:
    ticks = [*axes.xaxis.majorTicks, *axes.yaxis.majorTicks]
    return [label for tick in ticks for label in (tick.label1, tick.label2)]


@pytest.mark.parametrize(("kind", "name"), MADE)
def test_nothing_overlaps(name: str, kind: str) -> None:
    figure = drawn(name, kind)
    boxes = {f"{i} {a.get_title()!r}": a.get_tightbbox() for i, a in enumerate(figure.axes)}
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        assert overlap(a, b) <= 3, f"{one} and {other}"
    for legend in figure.legends:
        for label, box in boxes.items():
            assert overlap(legend.get_window_extent(), box) <= 1, f"legend and {label}"


@pytest.mark.parametrize("name", [name for kind, name in MADE if kind == "default"])
def test_text_stays_legible_at_the_width_of_a_column(name: str) -> None:
    sizes = {text.get_text(): text.get_fontsize() for text in texts(drawn(name))}
    assert min(sizes.values()) >= 6, sizes


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_without_input_is_not_made(name: str, tmp_path: Path) -> None:
    with pytest.raises(Absent, match=r".{20}"):
        write_figure(name, Frames.of(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_drawing_does_not_change_global_state() -> None:
    before = dict(mpl.rcParams)
    draw("pareto", frames_of(**KINDS["one"]))
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_many_dense_models_is_drawn_or_refused(name: str) -> None:
    results = frames_of(**KINDS["many"]).results
    dense = Frames.of(results=results[results["phase"] == "dense"])
    with contextlib.suppress(Absent):
        draw(name, dense)


@pytest.mark.parametrize("name", ["pareto", "send_uniformity"])
def test_drawing_again_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    frames = frames_of(**KINDS["one"])
    once, again = (write_figure(name, frames, tmp_path / run) for run in ("a", "b"))
    assert [path.name for path in once] == [f"{name}.{ending}" for ending in ("png", "pdf", "svg")]
    for one, other in zip(once, again, strict=True):
        assert len(one.read_bytes()) > 1000
        assert one.read_bytes() == other.read_bytes(), one.suffix


def test_a_figure_is_drawn_once_per_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawings: list[Figure] = []
    before = Figure.draw

    def counted(self: Figure, renderer: Any) -> None:
        drawings.append(self)
        before(self, renderer)

    monkeypatch.setattr(Figure, "draw", counted)
    write_figure("stability", frames_of(**KINDS["one"]), tmp_path)
    assert len(drawings) == len(style.FORMATS)


def test_png_has_print_resolution(tmp_path: Path) -> None:
    from PIL import Image

    path = write_figure("stability", frames_of(**KINDS["one"]), tmp_path)[0]
    with Image.open(path) as image:
        assert image.width == 680


def test_series_differ_without_colour() -> None:
    marks = list(style.marks(f"s{i}" for i in range(12)).values())
    assert len({(mark.marker, mark.colour) for mark in marks}) == 12
    for one, other in combinations(marks[:7], 2):
        assert one.colour != other.colour
        assert one.marker != other.marker
        assert one.line != other.line
        assert one.hatch != other.hatch


def test_many_cells_share_panels() -> None:
    assert len(drawn("pareto", "many").axes) == 2  # one panel per model
    assert len(drawn("history", "many").axes) == style.FACETS
    assert len(drawn("pareto").axes) == 4


def test_long_names_of_variants_are_broken_at_their_hyphens_in_titles() -> None:
    rows = pd.DataFrame({"model": ["TimeMachine"], "variant": ["published-share10-epochs20"]})
    (title, _), *_ = style.panels(rows, ["model", "variant"])
    assert title == "TimeMachine\npublished-\nshare10-epochs20"


@pytest.mark.parametrize("count", [7, 20])
def test_models_never_share_a_panel(count: int) -> None:
    names = [f"m{i:02}" for i in range(count)]
    frame = pd.DataFrame(
        [("a", name, v, 96, h) for name in names for v in ("deep", "wide") for h in (96, 336)],
        columns=["dataset", "model", "variant", "lookback", "horizon"],
    )
    keys, _ = style.split(frame, 6)
    assert [rows["model"].nunique() for _, rows in style.panels(frame, keys)] == [1] * count


# content


def mse(mask: Mask, phase: str, seed: int) -> float:
    keys = {"dataset": "ETTh1", "model": "iTransformer", "horizon": 96, "seed": seed}
    return error(keys, mask, phase, "ETTh1")


def test_pareto_points_are_changes_against_the_control_with_their_interval() -> None:
    axis = panels(drawn("pareto"))["ETTh1 iTransformer"]
    handles, labels = axis.get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    full, half = Mask.full((4, 4, 4, 4)), nested("send", 0.5)
    control = [mse(full, "finetuned", seed) for seed in range(3)]
    line, _, (bar,) = shown["SPAT 50 %"]
    assert line.get_xdata()[0] == 100 * 32 / 40
    change = 100 * (np.mean([mse(half, "finetuned", s) for s in range(3)]) / np.mean(control) - 1)
    assert line.get_ydata()[0] == pytest.approx(change, abs=1e-3)
    (segment,) = bar.get_segments()
    row = (
        tables()["changes"]
        .function(frames_of())
        .query("dataset == 'ETTh1' and model == 'iTransformer' and method == 'SPAT 50 %'")
    )
    assert segment[:, 1] == pytest.approx([row["low"].item(), row["high"].item()])
    dense = shown["dense"].lines[0]
    expected = np.mean([mse(full, "dense", s) / c - 1 for s, c in enumerate(control)])
    assert (dense.get_xdata()[0], dense.get_ydata()[0]) == pytest.approx((100, 100 * expected))
    assert axis.get_xlabel() == "" and "FLOPs" in drawn("pareto").axes[-1].get_xlabel()


def test_the_front_holds_the_undominated_points() -> None:
    axis = panels(drawn("pareto"))["ETTh1 iTransformer"]
    handles, labels = axis.get_legend_handles_labels()
    front = dict(zip(labels, handles, strict=True))["front"]
    x, y = np.asarray(front.get_xdata()), np.asarray(front.get_ydata())
    assert (np.diff(x) >= 0).all() and (np.diff(y) <= 0).all()
    points = [h.lines[0].get_xydata()[0] for h in handles if isinstance(h, ErrorbarContainer)]
    for px, py in points:
        beaten = any((qx <= px and qy <= py) and (qx, qy) != (px, py) for qx, qy in points)
        assert beaten != ((x == px) & (y == py)).any()


def test_pareto_of_many_cells_joins_them() -> None:
    axis = panels(drawn("pareto", "many"))["iTransformer"]
    handles, labels = axis.get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    assert shown["dense"].lines[0].get_xdata()[0] == pytest.approx(100)
    assert list(shown["control"].lines[0].get_xydata()[0]) == pytest.approx([100, 0])


def test_all_panels_of_the_pareto_figure_have_one_scale() -> None:
    axes = drawn("pareto").axes
    assert len({axis.get_xlim() for axis in axes}) == len({axis.get_ylim() for axis in axes}) == 1


def test_a_baseline_far_away_is_named_and_not_drawn() -> None:
    made = build(datasets=("ETTh1",), models=("iTransformer", "DLinear"), pairs=())
    made["results"].loc[made["results"]["model"] == "DLinear", "mse"] = 3.0
    figure = draw("pareto", Frames.of(**made))
    (axis,) = figure.axes
    assert axis.get_ylim()[1] < 20
    assert re.search(r"\n\(DLinear: \+\d{3}\.\d %\)$", axis.get_title())


METHODS = ("dense", "control", "SPAT (val.)", "SPAT 25 %", "SPAT 50 %", "SPAT 75 %", "none left")
EXPERIMENTS = Path(__file__).parents[2] / "workflow" / "experiments"


def kinds_of_controls() -> set[str]:
    """The kinds of the variants of all experiments that are controls: `sam` of `deep+sam0.05`."""
    files = [read_file(path) for path in EXPERIMENTS.glob("*.yaml")]
    variants = [name for file in files for name in file.get("variants", {}) if "+" in name]
    return {re.sub(r"[\d.]+$", "", name.split("+")[1]) for name in variants}


@pytest.mark.parametrize(
    "names",
    [(*METHODS, *MODELS), (*METHODS, *sorted(kinds_of_controls())), tuple(CRITERIA)],
    ids=["methods and models", "methods and controls", "criteria"],
)
def test_names_that_figures_compare_have_marks_of_their_own(names: tuple[str, ...]) -> None:
    assert len(names) >= len(METHODS) + 3
    unknown = style.mark("a control of one's own")
    marks = {(m.colour, m.marker): name for name in names for m in [style.mark(name)]}
    assert sorted(marks.values()) == sorted(names)
    assert (unknown.colour, unknown.marker) not in marks


def test_the_main_criteria_differ_in_grey_and_without_markers() -> None:
    for part in ("colour", "marker", "line"):
        values = {getattr(style.mark(name), part) for name in methods.MAIN_CRITERIA}
        assert len(values) == len(methods.MAIN_CRITERIA), part
    assert set(methods.CRITERIA_IN_ORDER) == set(CRITERIA)


def test_the_mark_of_a_name_is_always_the_same() -> None:
    assert style.mark("sam (tuned)") == replace(style.mark("sam"), label="SAM (tuned)")
    assert style.mark("SPAT 50 %") == style.share(0.5, "SPAT 50 %")
    assert style.mark("send").label == "SEND"
    for name in (*METHODS, *MODELS, "a control of one's own"):
        assert style.mark(name).marker in webpage.SYMBOLS, name


def test_a_method_has_the_same_mark_in_every_figure() -> None:
    marks = [style.mark(name) for name in (*METHODS, *MODELS, *CRITERIA)]
    expected = {mark.label: mark.colour for mark in marks}
    seen = set()
    for name in (name for kind, name in MADE if kind == "default"):
        for axis in drawn(name).axes:
            for handle, text in zip(*axis.get_legend_handles_labels(), strict=True):
                label = text.removeprefix("fine-tuning: ")
                if label in expected:
                    drawing = handle.lines[0] if isinstance(handle, ErrorbarContainer) else handle
                    get = getattr(drawing, "get_color", None) or drawing.get_facecolor  # type: ignore[attr-defined]
                    colour = np.atleast_2d(to_rgba_array(get()))[0, :3]
                    assert colour == pytest.approx(to_rgba_array(expected[label])[0, :3]), name
                    seen.add((name, label))
    assert {"SPAT (val.)", "none left", "SEND", "michel", "DLinear"} <= {label for _, label in seen}
    assert {"pareto", "latency", "history", "forecasts", "rivals", "forest", "stability"} <= {
        name for name, _ in seen
    }


def test_rivals_joins_the_points_of_a_dense_and_its_pruned_model() -> None:
    axis = panels(drawn("rivals"))["ETTh1"]
    rows = methods.at_home(frames_of())
    rows = rows[(rows["dataset"] == "ETTh1") & (rows["model"] == "iTransformer")]
    means = rows.groupby("method")[["flops", "mse"]].mean()
    wanted = means.loc[[methods.DENSE, methods.CHOSEN, methods.NONE_LEFT]].to_numpy()
    lines = [line.get_xydata() for line in axis.lines]
    assert any(np.allclose(line, wanted) for line in lines)
    labels = axis.get_legend_handles_labels()[1]
    assert {"iTransformer, none left", "DLinear"} <= set(labels)
    assert "RepeatLast" not in labels, "naive forecasts are not trained"


def test_attention_maps_of_models_with_different_numbers_of_sites_are_drawn() -> None:
    wide = build(["ETTh1"])
    maps = wide["maps"]
    last = sorted(maps["name"].unique())[-1]
    wide["maps"] = maps[(maps["model"] != "PatchTST") | (maps["name"] != last)]
    figure = draw("attention_maps", Frames.of(**wide))
    whole = draw("attention_maps", Frames.of(**build(["ETTh1"])))
    assert len(figure.axes) == len(whole.axes) - 3


def test_rivals_draws_a_far_higher_error_at_the_end_of_the_axis_with_its_number() -> None:
    assert not panels(drawn("rivals"))["ETTh1"].texts
    wide = build(["ETTh1"])
    results = wide["results"]
    results.loc[results["model"] == "DLinear", "mse"] = 3.0
    axis = panels(draw("rivals", Frames.of(**wide)))["ETTh1"]
    end = axis.get_ylim()[1]
    assert end < 1.0
    assert [text.get_text() for text in axis.texts] == ["↑ 3.000"]
    at = {str(c.get_label()): np.asarray(c.get_offsets()) for c in axis.collections}
    assert at["DLinear"][:, 1] == pytest.approx(end)
    assert at["iTransformer"][:, 1].max() < end


@pytest.mark.parametrize("high", [2.5e5, 9.0e5, 4.0e6, 3.0e8])
def test_a_logarithmic_axis_has_at_least_two_labels(high: float) -> None:
    figure = Figure()
    axis = figure.add_subplot()
    axis.plot([1.3e5, high], [0.0, 1.0])
    axis.set_xscale("log")
    reproduction._label_decades(axis)
    figure.draw_without_rendering()
    ticks = zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)
    shown = [text for at, text in ticks if 1.3e5 <= at <= high and text.get_text()]
    assert 2 <= len(shown) <= 4


def test_deviations_from_published_errors_stand_beside_the_band() -> None:
    (axis,) = drawn("reproduction").axes
    table = tables()["reproduction"].function(frames_of())
    wanted = table[(table["method"] == "change") & (table["metric"] == "MSE")]["mean"]
    (dots,) = (line for line in axis.lines if line.get_label() == "MSE")
    assert sorted(dots.get_xdata()) == pytest.approx(sorted(wanted))
    (band,) = axis.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == (-3, 3)  # type: ignore[attr-defined]


def test_pruned_and_from_scratch_stand_side_by_side() -> None:
    made = frames_of(datasets=("ETTh1",), horizons=(96,), models=("iTransformer",), scratch=True)
    figure = draw("controls", made)
    (axis,) = figure.axes
    assert "none left" in [text.get_text() for text in axis.get_yticklabels()]
    rows = tables()["controls"].function(made).set_index(["method", "measure"])["mean"]
    scratch, dense = rows["none left", "MSE, from scratch"], rows["dense", "MSE"]
    open_marks = [line for line in axis.lines if line.get_markerfacecolor() == "none"]
    positions = [line.get_xdata()[0] for line in open_marks if len(line.get_xdata())]
    assert positions[-1] == pytest.approx(100 * (scratch / dense - 1))


def test_masks_with_a_name_are_not_grey_dots() -> None:
    _, labels = drawn("pareto").axes[0].get_legend_handles_labels()
    assert "other masks" in labels
    made = build(exhaustive=False, pairs=())
    made["selections"] = made["selections"].query("criterion in ('send', 'control')")
    rows = made["results"]
    masks = {nested("send", ratio).name for ratio in (0.25, 0.5, 0.75)}
    made["results"] = rows[rows["mask"].isin({FULL, EMPTY, "none"} | masks)]
    for name in ("pareto", "latency"):
        for axis in draw(name, Frames.of(**made)).axes:
            assert "other masks" not in axis.get_legend_handles_labels()[1]


def test_latency_is_relative_to_the_dense_model() -> None:
    axis = panels(drawn("latency"))["ETTh2 PatchTST"]
    handles, labels = axis.get_legend_handles_labels()
    line = dict(zip(labels, handles, strict=True))["none left"].lines[0]
    assert line.get_xdata()[0] == pytest.approx(60)
    assert line.get_ydata()[0] == pytest.approx(100 * 4.4 / 6.0)


def test_send_sites_shows_scores_in_forward_order() -> None:
    figure = drawn("send_sites", "one")
    bars = [patch.get_height() for patch in figure.axes[0].patches]
    scores = frames_of(**KINDS["one"]).scores
    scores = scores.query("criterion == 'send' and head == -1 and batch >= 0")
    expected = scores.groupby("site")["value"].mean() / 1e-2
    assert bars == pytest.approx(list(expected))
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["e0", "e1", "e2", "e3"]
    assert "10^{-2}" in figure.axes[0].get_ylabel()
    trajectory = figure.axes[1].lines[0]
    assert list(trajectory.get_xdata()) == [1, 2, 3, 4, 5]
    assert trajectory.get_ydata()[0] == pytest.approx(2 * score("send", 0, -1) / 1e-2)
    (handles, labels) = figure.axes[1].get_legend_handles_labels()
    assert labels == ["kept epoch"]
    assert list(handles[0].get_xdata()) == [KEPT, KEPT]


def test_heads_are_sorted_within_their_site_and_divided_by_the_mean_of_the_run() -> None:
    (axis, bar) = drawn("send_heads", "one").axes
    scores = frames_of(**KINDS["one"]).scores.query("criterion == 'send' and batch >= 0")
    means = scores.groupby(["site", "head"])["value"].mean().drop(-1, level="head")
    image = np.asarray(axis.images[0].get_array(), dtype=np.float64)
    for site, row in enumerate(image):
        expected = sorted(means.loc[site] / means.mean())
        assert row[:4] == pytest.approx(expected)
    assert np.isnan(image[:, 4]).all(), "a gap before the whole site"
    assert image[:, 5].mean() == pytest.approx(1.0)
    assert "mean of the run" in bar.get_xlabel()
    limits = {i.get_clim() for a in drawn("send_heads").axes for i in a.images}
    assert len(limits) == 1, "one scale for all panels"


def test_sites_of_one_head_have_no_heads_to_compare() -> None:
    made = build(datasets=("ETTh1",), models=("iTransformer",), seeds=(0,), pairs=())
    made["scores"] = made["scores"].query("head < 1")
    with pytest.raises(Absent, match="several heads"):
        draw("send_heads", Frames.of(**made))


def test_changes_by_source_are_against_the_better_reference_and_sorted() -> None:
    figure = drawn("by_source", "many")
    axis = panels(figure)["iTransformer deep"]
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert len(names) == 7 and names[-1] == "mean of sources"
    shown = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    rows = methods.at_home(frames_of(**KINDS["many"])).query(
        "model == 'iTransformer' and method == 'SPAT (val.)'"
    )
    base = methods.references(frames_of(**KINDS["many"]).results)
    joined = rows.merge(base, on=list(RUN), suffixes=("", "_base"))
    joined["change"] = 100 * (joined["mse"] / joined["mse_base"] - 1)
    means = joined.groupby(["source", "dataset"])["change"].mean().groupby("source").mean()
    drawn_changes = shown["SPAT (val.), MSE"].lines[0].get_xdata()
    assert drawn_changes == pytest.approx([*means[names[:-1]], means.mean()])
    assert list(drawn_changes[:-1]) == sorted(drawn_changes[:-1])
    assert {"SPAT (val.), MAE", "none left, MSE", "none left, MAE"} <= set(shown)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder.0.self", "e0"),
        ("decoder.1.self", "d1"),
        ("decoder.1.cross", "d1×"),
        ("encoder.0.time", "e0"),
        ("encoder.0.router", "e0r"),
    ],
)
def test_short_names_of_sites(name: str, expected: str) -> None:
    assert methods.short_site_name(name) == expected


def test_uniformity_names_the_correlation_and_the_two_sites() -> None:
    titles = [axis.get_title() for axis in drawn("send_uniformity", "one").axes]
    assert "ρ = −1.00" in titles[0]
    assert titles[1].startswith("lowest: e1")
    assert titles[2].startswith("highest: e0")
    image = drawn("send_uniformity", "one").axes[2].images[0].get_array()
    assert image.shape == (7, 7)
    assert np.allclose(image.sum(axis=1), 7), "in multiples of a uniform weight"


def test_maps_have_one_scale_and_the_legend_names_dots_and_rings() -> None:
    figure = drawn("send_uniformity")
    images = [image for axis in figure.axes for image in axis.images]
    assert len({image.get_clim() for image in images}) == 1
    assert max(image.get_array().max() for image in images) == images[0].get_clim()[1]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["head", "whole site"]


def test_attention_maps_are_those_before_and_after_pruning() -> None:
    figure = drawn("attention_maps", "one")
    *axes, bar = figure.axes
    assert bar.get_xlabel() == "weight / uniform weight"
    rows = [axes[i : i + 2] for i in range(0, len(axes), 2)]
    assert [row[0].get_ylabel() for row in rows] == ["dense", "control", "SPAT 50 %"]
    assert rows[0][0].get_title().splitlines()[-1] == "e1, max 2.8×"
    removed, kept = rows[2]
    assert removed.get_title() == "e1" and len(removed.lines) == 2, "a cross"
    assert not removed.images and len(kept.images) == 1
    images = [image for row in rows for axis in row for image in axis.images]
    assert len(images) == 5 and len({image.get_clim() for image in images}) == 1


def test_stability_ends_in_full_agreement() -> None:
    axis = drawn("stability", "one").axes[0]
    handles, labels = axis.get_legend_handles_labels()
    send = dict(zip(labels, handles, strict=True))["SEND"]
    assert list(send.get_xdata()) == list(range(1, 9))
    assert send.get_ydata()[-1] == 1.0
    assert send.get_ydata()[0] < 1.0


def test_heads_vs_modules_shows_the_relative_difference_by_criterion() -> None:
    axis = panels(drawn("heads_vs_modules"))["ETTh1 iTransformer"]
    handles, labels = axis.get_legend_handles_labels()
    assert labels == ["SEND", "random", "michel"]
    line, _, (bars,) = dict(zip(labels, handles, strict=True))["SEND"]
    ratios = [
        mse(head_mask("send", 0.25), "finetuned", s) / mse(nested("send", 0.25), "finetuned", s)
        for s in range(3)
    ]
    assert line.get_ydata()[0] == pytest.approx(100 * (np.mean(ratios) - 1))
    low, high = bars.get_segments()[0][:, 1]
    half = 4.303 * 100 * np.std(ratios, ddof=1) / np.sqrt(3)  # t with two degrees of freedom
    assert (high - low) / 2 == pytest.approx(half, rel=1e-3)


def test_heads_vs_modules_of_one_seed_has_an_interval_over_windows() -> None:
    made = build(datasets=("ETTh1",), models=("iTransformer",), seeds=(0,), pairs=())
    rng = np.random.default_rng(0)
    made["losses"]["mse"] = [
        x.mean() + rng.permutation(x - x.mean()) for x in made["losses"]["mse"]
    ]
    (axis,) = draw("heads_vs_modules", Frames.of(**made)).axes
    handles, labels = axis.get_legend_handles_labels()
    _, _, (bars,) = dict(zip(labels, handles, strict=True))["SEND"]
    widths = []
    losses = made["losses"].query("phase == 'finetuned'").set_index("mask")["mse"]
    for i, ratio in enumerate((0.25, 0.5, 0.75)):
        head, site = (losses[m.name] for m in (head_mask("send", ratio), nested("send", ratio)))
        change = relative_change(site, head, 96 + 96)
        widths.append(change.high - change.low)
        ends = bars.get_segments()[i][:, 1]
        assert ends == pytest.approx([100 * change.low, 100 * change.high])
    assert max(widths) > 1e-3


def test_criteria_are_ordered_by_gain() -> None:
    left = drawn("criteria_quality").axes[0]
    order = [text.get_text() for text in left.get_yticklabels()]
    assert order[-1] == "send"  # the best is on top
    gains = left.lines[0].get_xdata()
    assert list(gains) == sorted(gains)


def test_criteria_of_one_model_are_no_empty_rows_of_another() -> None:
    made = build(datasets=("ETTh1",), seeds=(0,), pairs=())
    chosen = made["selections"]
    other = (chosen["model"] == "PatchTST") & (chosen["level"] == "head")
    figure = draw("criteria_changes", Frames.of(**{**made, "selections": chosen[~other]}))
    rows = {a.get_title(): [t.get_text() for t in a.get_yticklabels()] for a in figure.axes}
    assert any("heads" in row for row in rows["iTransformer"])
    assert rows["PatchTST"] and not any("heads" in row for row in rows["PatchTST"])


def test_the_legend_names_all_masks_only_if_there_are_more_than_those_of_send() -> None:
    def legend(made: dict[str, pd.DataFrame]) -> set[str]:
        figure = draw("sites_removed", Frames.of(**made))
        return {text.get_text() for text in figure.legends[0].get_texts()}

    made = build(datasets=("ETTh1",), models=("iTransformer",), seeds=(0,), pairs=())
    assert {"all masks", "their mean", "SEND"} <= legend(made)
    chosen = made["selections"]
    send = chosen[chosen["criterion"].isin(["control", "send"])]
    results = made["results"]
    own = results["mask"].isin({FULL, *send["mask"]}) | (results["phase"] == "dense")
    assert legend({**made, "selections": send, "results": results[own]}) == {"SEND"}


def test_ranks_are_over_stations_and_criteria_that_differ_are_not_joined() -> None:
    titles = [axis.get_title() for axis in drawn("critical_difference", "many").axes]
    # Eight files; the four of ETT are two stations.
    assert [title.split("\n")[0] for title in titles] == [
        "PatchTST deep: 6 sources",
        "iTransformer deep: 6 sources",
    ]
    axis = drawn("critical_difference", "many").axes[1]
    labels = [text.get_text() for text in axis.texts]
    assert labels[0] == "send (1.0)"
    assert "(4.5) michel" in labels and "(4.5) send_reverse" in labels
    bars = [line.get_xdata() for line in axis.lines if line.get_linewidth() == 1.8]
    assert bars and not any(min(bar) == 1 and max(bar) > 3.5 for bar in bars)


def test_too_few_sources_are_reported_and_not_ranked() -> None:
    with pytest.raises(Absent, match=r"iTransformer deep 2 \(5 criteria\).*at least 6"):
        draw("critical_difference", frames_of())
    alone = frames_of().selections.query("criterion in ('send', 'control')")
    one = Frames.of(results=frames_of().results, selections=alone)
    with pytest.raises(Absent, match=r"iTransformer deep 2 \(1 criterion\)"):
        draw("critical_difference", one)


def test_transfer_shows_the_change_on_the_target_and_at_home() -> None:
    axis = drawn("transfer").axes[1]
    assert "SPAT vs control" in axis.get_title()
    values = [float(text.get_text().replace("−", "-")) for text in axis.texts]
    keys = {"dataset": "ETTh1", "model": "iTransformer", "horizon": 96}
    full = Mask.full((4, 4, 4, 4))

    def change(target: str) -> float:
        return 100 * np.mean(
            [
                error({**keys, "seed": s}, nested("send", 0.5), "finetuned", target)
                / error({**keys, "seed": s}, full, "finetuned", target)
                - 1
                for s in range(3)
            ]
        )

    assert values[:2] == pytest.approx([change("ETTh1"), change("ETTh2")], abs=0.05)


def test_all_matrices_have_one_colour_scale() -> None:
    axes = drawn("transfer").axes
    for kind in (axes[::2], axes[1::2]):
        assert len({axis.collections[0].get_clim() for axis in kind}) == 1


def test_forecasts_begin_where_the_input_ends() -> None:
    axis, *others = drawn("forecasts", "one").axes
    assert [axis.get_title().split("\n")[-1], *(o.get_title() for o in others)] == [
        "window 0",
        "window 20",
    ]
    handles, labels = axis.get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    assert list(shown) == ["input", "truth", "dense", "control", "SPAT (val.)", "none left"]
    assert "last channel" in axis.get_ylabel()
    assert shown["input"].get_xdata()[-1] == -1
    assert shown["truth"].get_xdata()[0] == 0
    assert len(shown["dense"].get_xdata()) == 96


def test_history_continues_with_fine_tuning() -> None:
    axis = panels(drawn("history"))["ETTh1 iTransformer"]
    handles, labels = axis.get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    assert list(shown["validation"].get_xdata()) == [1, 2, 3, 4, 5]
    assert list(shown["fine-tuning: control"].get_xdata()) == [6, 7, 8]
    assert "fine-tuning: SPAT (val.)" in shown


def test_the_history_of_one_run_can_be_drawn_alone() -> None:
    rows = frames_of().history.query("dataset == 'ETTh1' and model == 'iTransformer' and seed == 1")
    (axis,) = run_history(rows, EMPTY).axes
    _, labels = axis.get_legend_handles_labels()
    assert "fine-tuning: none left" in labels
    (axis,) = run_history(rows[rows["stage"] == "pretrain"]).axes
    assert len(axis.get_legend_handles_labels()[1]) == 2
    assert FULL not in labels
