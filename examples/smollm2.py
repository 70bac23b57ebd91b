"""Remove attention from a pretrained language model, zero-shot: SmolLM2-135M and its 30 sites.

Every criterion ranks the sites on training windows of a text, the lowest sites are removed with
`spat.prune`, which verifies each removal, and the loss is measured on held-out windows. Nothing is
fine-tuned. Two commands, about 40 minutes and a few seconds on one core:

    python examples/smollm2.py measure FOLDER   # writes results.csv, scores.csv and windows.csv
    python examples/smollm2.py pages FOLDER     # writes table.md and the figure loss from them

`measure` needs the packages of envs/requirements-language.txt and a GGUF file of SmolLM2;
`spat.models.layers.pretrained` says where it is looked for. The text is that of the experiment
`text`: Python's reference.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

import spat
from spat.data import texts
from spat.data.registry import TEXTS
from spat.files import replacing
from spat.models.layers.pretrained import gguf_file, tokeniser
from spat.pipeline.records import commit
from spat.study.pages import style
from spat.surgery.choose import lowest

SCORED: Final = (
    "send", "send_reverse", "cosine", "block_influence", "michel", "depth_first", "depth_last",
)  # fmt: skip
# Statistics of attention maps, which do not rank sites.
DESCRIBED: Final = ("entropy", "attention_std")
RANKED: Final = (*SCORED, "loss_drop", "random")
DRAWS: Final = 10
REMOVED: Final = (3, 6, 9, 12, 15, 30)
TEXT: Final = "PythonTopics"
# The number of tokens of a window; the model predicts the token after each of them.
CONTEXT: Final = 256
SCORING, HELD_OUT, TOGETHER = 4, 8, 4

Order = list[str]
Key = tuple[str, int]  # criterion, draw


def loss(model: Any, batch: Tensor) -> Tensor:
    """The cross entropy of each window in nats per token, [B]; `batch` is int64 [B, T + 1]."""
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.mT, batch[:, 1:], reduction="none").mean(1)


def windows(tokens: Sequence[int], count: int, context: int) -> Tensor:
    """`count` windows of `context` + 1 tokens, evenly spread over a text: int64 [count, T + 1].

    Raises:
        ValueError: if the text is shorter than the windows.
    """
    if len(tokens) < count * (context + 1):
        raise ValueError(f"{len(tokens)} tokens do not hold {count} windows of {context + 1}")
    starts = np.linspace(0, len(tokens) - context - 1, count).round().astype(int)
    return torch.stack([torch.tensor(tokens[start : start + context + 1]) for start in starts])


def losses(model: nn.Module, cases: Tensor) -> NDArray[np.float64]:
    """The loss of each window, [B]."""
    with torch.no_grad():
        parts = [loss(model.eval(), part) for part in cases.split(TOGETHER)]
    values: NDArray[np.float64] = torch.cat(parts).double().numpy()
    return values


def removals(scores: pd.DataFrame, names: Sequence[str]) -> dict[Key, Order]:
    """The sites in the order in which a criterion removes them, by criterion and draw."""
    wide = scores.pivot_table(index="site", columns="criterion", values="value").loc[list(names)]
    count = len(names)
    orders = {
        (criterion, 0): [names[i] for i in lowest(wide[criterion].to_numpy(), count)]
        for criterion in RANKED
        if criterion in wide
    }
    for draw in range(DRAWS):
        order = np.random.default_rng(draw).permutation(count)
        orders["random", draw] = [names[i] for i in order]
    return orders


def scored(
    model: nn.Module, batches: Sequence[Tensor], small: Tensor
) -> tuple[tuple[str, ...], pd.DataFrame]:
    """The sites that can be removed, and a score of each by criterion: site, criterion, value."""
    sites = spat.find_sites(model, loss, small)
    names = tuple(site.name for site in sites if site.refusal is None)
    tables = [
        spat.score(model, batches, loss, criterion=criterion).table()
        for criterion in tqdm((*SCORED, *DESCRIBED), desc="scores")
    ]
    table = pd.concat(tables)
    table = table[(table["head"] == -1) & table["site"].isin(names)].drop(columns="head")
    cases = torch.cat(list(batches))
    before = losses(model, cases).mean()
    drops = [
        losses(spat.prune(model, [name], loss, small), cases).mean() - before
        for name in tqdm(names, desc="loss_drop")
    ]
    drop = pd.DataFrame({"site": names, "criterion": "loss_drop", "value": drops})
    return names, pd.concat([table, drop], ignore_index=True)


def measured(
    model: nn.Module, orders: Mapping[Key, Order], removed: Sequence[int], cases: Tensor, small: Any
) -> dict[frozenset[str], NDArray[np.float64]]:
    """The losses of the held-out windows without each set of sites; the empty set is the model."""
    sets = {frozenset(order[:count]) for order in orders.values() for count in removed}
    by_sites = {frozenset[str](): losses(model, cases)}
    for sites in tqdm(sorted(sets, key=lambda one: (len(one), sorted(one))), desc="removed"):
        by_sites[sites] = losses(spat.prune(model, sorted(sites), loss, small), cases)
    return by_sites


def results(
    orders: Mapping[Key, Order],
    removed: Sequence[int],
    by_sites: Mapping[frozenset[str], NDArray[np.float64]],
    names: Sequence[str],
    **constant: object,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The loss by criterion, draw and number of removed sites; and by window and set of sites.

    Sites are numbered in forward order, and the numbers are joined by spaces.
    """

    def numbers(sites: frozenset[str]) -> str:
        return " ".join(str(i) for i, name in enumerate(names) if name in sites)

    dense = by_sites[frozenset()].mean()
    rows = [
        (criterion, draw, count, numbers(sites), by_sites[sites].mean(), dense)
        for (criterion, draw), order in orders.items()
        for count in removed
        for sites in [frozenset(order[:count])]
    ]
    columns = ["criterion", "draw", "removed", "sites", "loss", "dense"]
    each = [
        (numbers(sites), window, value)
        for sites, values in by_sites.items()
        for window, value in enumerate(values)
    ]
    frame = pd.DataFrame(rows, columns=columns).assign(**constant)
    return frame, pd.DataFrame(each, columns=["sites", "window", "loss"])


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """The loss by criterion and number of removed sites; for `random`, the mean and extremes."""
    wide = frame.pivot_table(index="criterion", columns="removed", values="loss", sort=False)
    drawn = frame[frame["criterion"] == "random"].groupby("removed")["loss"]
    for name, values in (("lowest", drawn.min()), ("highest", drawn.max())):
        wide.loc[f"random, {name} of {frame['draw'].nunique()}"] = values
    return wide.round(3)


def draw_losses(frame: pd.DataFrame, folder: Path) -> tuple[Path, ...]:
    """Plot the loss against the number of removed sites; `random` is a mean and a band."""
    count = frame["removed"].max()
    frame = frame[frame["removed"] < count]
    with style.drawing():
        figure = style.canvas(height=3.2)
        axis = figure.subplots()
        for criterion in frame["criterion"].unique():
            rows = frame[frame["criterion"] == criterion].groupby("removed")["loss"]
            mark = style.mark(criterion)
            look = {"color": mark.colour, "marker": mark.marker, "ls": mark.line}
            axis.plot(rows.mean().index, rows.mean(), label=mark.label, **look)
            if criterion == "random":
                band = {"color": mark.colour, "alpha": 0.2, "lw": 0}
                axis.fill_between(rows.mean().index, rows.min(), rows.max(), **band)
        axis.axhline(frame["dense"].iloc[0], **style.BORDER)
        axis.set_xticks(sorted(frame["removed"].unique()))
        axis.set_xlabel(f"sites removed, of {count}")
        axis.set_ylabel("cross entropy (nats per token)")
        style.legend_below(figure, [axis])
    return style.save(figure, folder / "loss")


def pages(folder: Path) -> None:
    """Write table.md and the figure from the frame in the folder."""
    frame = pd.read_csv(folder / "results.csv")
    first = frame.iloc[0]
    heading = (
        f"Cross entropy on {first['tokens']} held-out tokens in nats per token, by the number of "
        f"sites removed, without fine-tuning. Dense: {first['dense']:.3f}."
    )
    with replacing(folder / "table.md") as temporary:
        body = summary(frame).to_markdown(floatfmt=".3f")
        temporary.write_text(f"{heading}\n\n{body}\n", encoding="utf-8")
    draw_losses(frame, folder)


def measure(
    model: nn.Module, scoring: Tensor, held_out: Tensor, folder: Path, **constant: object
) -> None:
    """Score, remove and measure; write the frames into the folder."""
    small = scoring[:2, :17]
    names, scores = scored(model, list(scoring.split(TOGETHER)), small)
    orders = removals(scores, names)
    removed = sorted({min(count, len(names)) for count in REMOVED})
    by_sites = measured(model, orders, removed, held_out, small)
    constant = {"tokens": held_out[:, 1:].numel(), **constant}
    frame, each = results(orders, removed, by_sites, names, **constant)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("results", frame), ("windows", each), ("scores", scores)):
        with replacing(folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)


def smollm2(folder: Path) -> None:
    """Measure the pretrained model on Python's reference."""
    from transformers import AutoModelForCausalLM

    file = gguf_file()
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    content = texts.obtain(TEXTS[TEXT], Path("data"))
    splits = texts.prepare(TEXTS[TEXT], content).borders
    encode = tokeniser("smollm2", model.config.vocab_size).encode

    def cases(start: int, stop: int, count: int) -> Tensor:
        text = content[start:stop].tobytes().decode(errors="ignore")
        return windows(encode([text])[0], count, CONTEXT)

    measure(
        model,
        cases(*splits.train, SCORING),
        cases(*splits.test, HELD_OUT),
        folder,
        scoring_tokens=SCORING * CONTEXT,
        weights=hashlib.sha256(file.read_bytes()).hexdigest(),
        text=TEXTS[TEXT].file.sha256[0],
        commit=commit(),
        device=f"cpu ({platform.machine()}), {torch.get_num_threads()} thread",
        torch=torch.__version__,
    )


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=["measure", "pages"])
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    (smollm2 if given.command == "measure" else pages)(given.folder)


if __name__ == "__main__":
    main()
