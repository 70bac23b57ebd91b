"""The example that removes attention from a pretrained language model."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
smollm2 = importlib.import_module("smollm2")

NAMES = ("a", "b", "c", "d")


def scores(**values: list[float]) -> pd.DataFrame:
    rows = [
        (name, criterion, value)
        for criterion, column in values.items()
        for name, value in zip(NAMES, column, strict=True)
    ]
    return pd.DataFrame(rows, columns=["site", "criterion", "value"])


def test_windows_are_spread_over_the_text_and_overlap_nowhere() -> None:
    cases = smollm2.windows(range(100), 3, 9)
    assert cases[:, 0].tolist() == [0, 45, 90] and cases[:, -1].tolist() == [9, 54, 99]
    with pytest.raises(ValueError, match="29 tokens do not hold 3 windows of 10"):
        smollm2.windows(range(29), 3, 9)


def test_the_lowest_scores_are_removed_first_and_draws_differ() -> None:
    orders = smollm2.removals(scores(send=[3, 1, 2, 1], cosine=[1, 2, 3, 4], other=[0] * 4), NAMES)
    assert orders["send", 0] == ["b", "d", "c", "a"] and orders["cosine", 0] == list("abcd")
    drawn = [order for (criterion, _), order in orders.items() if criterion == "random"]
    assert len(drawn) == smollm2.DRAWS and len({tuple(order) for order in drawn}) > 5
    assert all(sorted(order) == list("abcd") for order in drawn)
    assert len(orders) == smollm2.DRAWS + 2


def test_a_set_of_sites_is_measured_once_for_all_rows_that_chose_it() -> None:
    orders = {("send", 0): list("badc"), ("michel", 0): list("abcd"), ("random", 3): list("cdab")}
    measured = {
        frozenset(sites): np.array([value, value + 2])
        for sites, value in {"": 1.0, "ab": 3.0, "cd": 5.0}.items()
    }
    frame, each = smollm2.results(orders, [2], measured, NAMES, tokens=7)
    assert frame.set_index("criterion")["sites"].to_dict() == {
        "send": "0 1", "michel": "0 1", "random": "2 3",
    }  # fmt: skip
    assert frame["loss"].tolist() == [4, 4, 6] and set(frame["dense"]) == {2}
    assert len(each) == 6 and set(frame["tokens"]) == {7}
    table = smollm2.summary(pd.concat([frame, frame.assign(draw=1, loss=9.0)[2:]]))
    assert table.loc["random", 2] == 7.5 and table.loc["send", 2] == 4
    assert table.loc["random, lowest of 3", 2] == 6 and table.loc["random, highest of 3", 2] == 9


@pytest.mark.filterwarnings("ignore::spat.attention.errors.AttentionWarning")
def test_a_tiny_llama_is_scored_pruned_and_measured(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=64, **sizes, **heads)
    model = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.randint(64, (400,)).tolist()
    scoring, held_out = smollm2.windows(tokens, 4, 20), smollm2.windows(tokens, 3, 30)
    smollm2.measure(model, scoring, held_out, tmp_path, weights="none")
    smollm2.pages(tmp_path)
    frame = pd.read_csv(tmp_path / "results.csv", dtype={"sites": str})
    assert len(frame) == 18 * 2 and set(frame["removed"]) == {3, 4}
    assert set(frame["criterion"]) == set(smollm2.RANKED)
    # The loss without sites is that with their outputs at zero.
    for number, (sites, loss) in enumerate(zip(frame["sites"], frame["loss"], strict=True)):
        hooks = [
            model.model.layers[int(site)].self_attn.register_forward_hook(
                lambda _m, _x, y: (torch.zeros_like(y[0]), *y[1:])
            )
            for site in sites.split()
        ]
        assert smollm2.losses(model, held_out).mean() == pytest.approx(loss, rel=1e-6), number
        for hook in hooks:
            hook.remove()
    assert frame["loss"].nunique() > 2
    dense = frame["dense"].iloc[0]
    assert smollm2.losses(model, held_out).mean() == pytest.approx(dense, rel=1e-6)
    assert set(frame["tokens"]) == {3 * 30} and set(frame["weights"]) == {"none"}
    assert "send_reverse" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert (tmp_path / "loss.png").stat().st_size > 10_000
