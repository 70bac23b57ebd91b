from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spat.attention.site import Site
from spat.models.layers.attention import AttentionCore, MultiHeadAttention
from spat.models.layers.blocks import DecoderLayer, EncoderLayer

WIDTH, HEADS, SIZE = 12, 3, 4


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def multi_head(**options: bool) -> MultiHeadAttention:
    return MultiHeadAttention(WIDTH, HEADS, dropout=0.0, **options)


def by_hand(
    x: Tensor, memory: Tensor, q: Tensor, k: Tensor, v: Tensor, out: torch.nn.Linear
) -> Tensor:
    """Attention head by head, from weights [width, width] without bias."""
    heads = []
    for h in range(HEADS):
        rows = slice(h * SIZE, (h + 1) * SIZE)
        a = ((x @ q[rows].T) @ (memory @ k[rows].T).transpose(1, 2) / SIZE**0.5).softmax(-1)
        heads.append(a @ (memory @ v[rows].T))
    return F.linear(torch.cat(heads, -1), out.weight, out.bias)


def test_the_fused_projection_is_q_k_v_head_by_head() -> None:
    attention = multi_head()
    torch.nn.init.zeros_(attention.qkv.bias)
    x = torch.randn(2, 5, WIDTH)
    q, k, v = attention.qkv.weight.chunk(3)
    torch.testing.assert_close(attention(x), by_hand(x, x, q, k, v, attention.out))


def test_cross_attention_reads_keys_and_values_from_the_memory() -> None:
    attention = multi_head(cross=True)
    torch.nn.init.zeros_(attention.q.bias)
    torch.nn.init.zeros_(attention.kv.bias)
    x, memory = torch.randn(2, 5, WIDTH), torch.randn(2, 8, WIDTH)
    k, v = attention.kv.weight.chunk(2)
    expected = by_hand(x, memory, attention.q.weight, k, v, attention.out)
    torch.testing.assert_close(attention(x, memory), expected)
    with pytest.raises(ValueError, match="memory"):
        attention(x)


def test_a_causal_query_does_not_see_later_keys() -> None:
    attention = multi_head(causal=True)
    x = torch.randn(2, 20, WIDTH)
    changed = x.clone()
    changed[:, 7:] += 1
    before, after = attention(x), attention(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().amin(-1).max() > 1e-3


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("kept", [[1], [0, 2], [0, 1, 2]])
def test_keeping_heads_equals_zeroing_the_others(cross: bool, kept: list[int]) -> None:
    dense = multi_head(cross=cross)
    pruned = copy.deepcopy(dense)
    pruned.keep_heads(kept)
    with torch.no_grad():
        for head in set(range(HEADS)) - set(kept):
            dense.out.weight[:, head * SIZE : (head + 1) * SIZE] = 0
    inputs = (torch.randn(2, 5, WIDTH), torch.randn(2, 8, WIDTH) if cross else None)
    torch.testing.assert_close(pruned(*inputs), dense(*inputs))
    assert (pruned.heads, pruned.head_size) == (len(kept), SIZE)
    linears = [m for m in pruned.modules() if isinstance(m, torch.nn.Linear)]
    assert all(m.weight.shape == (m.out_features, m.in_features) for m in linears)
    assert sum(m.weight.numel() for m in linears) == 4 * WIDTH * SIZE * len(kept)


def test_heads_can_be_removed_twice() -> None:
    dense = multi_head()
    once, twice = copy.deepcopy(dense), copy.deepcopy(dense)
    once.keep_heads([2])
    twice.keep_heads([0, 2])
    twice.keep_heads([1])  # numbered among those that are left
    x = torch.randn(2, 5, WIDTH)
    assert torch.equal(once(x), twice(x))


@pytest.mark.parametrize("kept", [[], [3], [-1]])
def test_heads_that_do_not_exist_cannot_be_kept(kept: list[int]) -> None:
    with pytest.raises(ValueError, match=r"0\.\.2"):
        multi_head().keep_heads(kept)


def test_more_heads_than_width_is_an_error_that_names_both() -> None:
    with pytest.raises(ValueError, match="n_heads 8 exceeds d_model 4"):
        MultiHeadAttention(4, 8, dropout=0.0)


@pytest.mark.parametrize("causal", [False, True])
def test_the_weights_of_the_core_give_its_output(causal: bool) -> None:
    core = AttentionCore(0.3, causal).eval()
    q, k, v = (torch.randn(2, 3, 6, SIZE) for _ in range(3))
    weights = core.weights(q, k)
    torch.testing.assert_close((weights @ v.double()).float(), core(q, k, v))
    assert torch.equal(weights > 0, core.allowed(q, k).expand_as(weights))


def test_dropout_acts_only_in_training() -> None:
    core = AttentionCore(0.5)
    q, k, v = (torch.randn(2, 3, 6, SIZE) for _ in range(3))
    assert not torch.equal(core(q, k, v), core(q, k, v))
    core.eval()
    assert torch.equal(core(q, k, v), core(q, k, v))


def test_a_hook_on_the_core_sees_q_k_v_and_the_output() -> None:
    attention, seen = multi_head(), []
    attention.core.register_forward_hook(lambda _, inputs, output: seen.append((inputs, output)))
    attention(torch.randn(2, 5, WIDTH))
    ((q, k, v), output) = seen[0]
    assert q.shape == k.shape == v.shape == output.shape == (2, HEADS, 5, SIZE)


def test_a_removed_site_leaves_the_residual_stream_and_the_norm() -> None:
    layer = EncoderLayer(WIDTH, 20, HEADS, dropout=0.0)
    site = Site("encoder.0.self", layer, "attention", HEADS)
    assert site.attention is layer.attention
    site.remove()
    assert site.attention is None
    assert not [name for name, _ in layer.named_parameters() if name.startswith("attention")]
    x = torch.randn(2, 5, WIDTH)
    y = layer.norm1(x)
    assert torch.equal(layer(x), layer.norm2(y + layer.feed_forward(y)))


def decoder_layer() -> DecoderLayer:
    own, cross = (MultiHeadAttention(WIDTH, HEADS, **{key: True}) for key in ("causal", "cross"))
    return DecoderLayer(WIDTH, 20, 0.0, own, cross)


def test_both_sites_of_a_decoder_layer_can_be_removed() -> None:
    layer = decoder_layer()
    x, memory = torch.randn(2, 5, WIDTH), torch.randn(2, 8, WIDTH)
    Site("decoder.0.self", layer, "self_attention", HEADS).remove()
    attended = layer.norm1(x) + layer.cross_attention(layer.norm1(x), memory)
    y = layer.norm2(attended)
    torch.testing.assert_close(layer(x, memory), layer.norm3(y + layer.feed_forward(y)))
    Site("decoder.0.cross", layer, "cross_attention", HEADS).remove()
    y = layer.norm2(layer.norm1(x))
    torch.testing.assert_close(layer(x, memory), layer.norm3(y + layer.feed_forward(y)))


def test_the_decoder_layer_is_causal() -> None:
    layer = decoder_layer()
    x, memory = torch.randn(2, 9, WIDTH), torch.randn(2, 8, WIDTH)
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(layer(x, memory)[:, :4], layer(changed, memory)[:, :4])
