from __future__ import annotations

import math
import platform
import subprocess
import sys
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from small_models import gradients, skip_without_weights
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from spat.data.registry import TIME_FEATURES
from spat.models.layers.attention import AttentionCore
from spat.models.registry import FORECASTERS, Shape, build, setup
from spat.training.device import kernels
from spat.training.device.kernels import Dropout, Linear, attend, dropout


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("inner", "outer"), [(6, 5), (4, 40), (40, 4), (1, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_its_gradients_equal_those_of_torch(inner: int, outer: int, bias: bool) -> None:
    linear = Linear(inner, outer, bias=bias)
    x = torch.randn(3, 7, inner, requires_grad=True)
    inputs = (x, *linear.parameters())
    wanted = F.linear(x, linear.weight, linear.bias)
    torch.testing.assert_close(linear(x), wanted)
    for actual, expected in zip(
        gradients(linear(x), *inputs), gradients(wanted, *inputs), strict=True
    ):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "last first": lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1),
    "sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "overlapping": lambda x: x.flatten().as_strided(x.shape, (x.shape[1], 1, 1)),
    "expanded": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_in_degenerate_shapes_equals_that_of_torch(layout: str, bias: bool) -> None:
    for batch, rows, inner, outer in product((1, 2, 3), repeat=4):
        linear = Linear(inner, outer, bias=bias)
        x = LAYOUTS[layout](torch.randn(batch, rows, inner)).detach().requires_grad_()
        weights = torch.randn(batch, rows, outer)
        inputs = (x, *linear.parameters())
        output, expected = linear(x), F.linear(x, linear.weight, linear.bias)
        torch.testing.assert_close(output, expected)
        # Layouts of gradients: contiguous, transposed, or one number expanded.
        for gradient in (weights, LAYOUTS["last first"](weights), torch.ones(()).expand_as(output)):
            for a, b in zip(
                torch.autograd.grad(output, inputs, gradient, retain_graph=True),
                torch.autograd.grad(expected, inputs, gradient, retain_graph=True),
                strict=True,
            ):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_attention_in_degenerate_shapes_equals_its_formula(width: int) -> None:
    for batch, heads, queries, keys, causal in product(
        (1, 2), (1, 2), (1, 2, 3), (1, 2, 3), (0, 1)
    ):
        if causal and queries != keys:
            continue
        q, k, v = (
            torch.randn(batch, heads, steps, width, requires_grad=True)
            for steps in (queries, keys, keys)
        )
        logits = q @ k.transpose(-1, -2) / width**0.5
        if causal:
            logits = logits.masked_fill(torch.ones(keys, keys).triu(1).bool(), -torch.inf)
        expected = logits.softmax(-1) @ v
        output = attend(q, k, v, 0.0, bool(causal))
        torch.testing.assert_close(output, expected)
        for a, b in zip(gradients(output, q, k, v), gradients(expected, q, k, v), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (1, 1), (3, 1), (1, 3, 2), (0, 3)])
def test_dropout_in_degenerate_shapes(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    y = dropout(x, 0.5)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.shape == x.shape and set(gradient.flatten().tolist()) <= {0.0, 2.0}
    torch.testing.assert_close(y, x * gradient)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", [name for name, row in FORECASTERS.items() if row.role != "naive"])
def test_models_take_one_channel_and_a_last_batch_of_one(name: str) -> None:
    skip_without_weights(name)
    small = {"d_model": 8, "d_ff": 8, "n_heads": 2, "e_layers": 1, "llm_layers": 1}
    small |= {"llm_width": 8, "llm_heads": 2, "vocabulary": 60, "prototypes": 10}
    known = setup(name, "published", "ETTh1", 96).settings
    changes = {key: value for key, value in small.items() if hasattr(known, key)}
    for lookback, channels, batch in ((96, 1, 1), (96, 1, 2), (96, 7, 1), (96, 1, 3)):
        settings = setup(name, "published", "ETTh1", 96, changes).settings
        marks = len(TIME_FEATURES) if settings.uses_marks else 0
        model = build(name, settings, Shape(lookback, 96, channels, marks)).train()
        steps = [torch.randn(batch, n, marks) if marks else None for n in (lookback, 96)]
        y = model(torch.randn(batch, lookback, channels), *steps)
        y.square().sum().backward()
        assert y.shape == (batch, 96, channels)
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.usefixtures("library")
def test_linear_takes_any_strides() -> None:
    linear = Linear(6, 40)
    x = torch.randn(6, 9, requires_grad=True)
    inputs = (x, linear.weight, linear.bias)
    # The gradient of a sum is one number, expanded.
    gradients_of_strided = torch.autograd.grad(linear(x.t()).sum(), inputs)
    expected = torch.autograd.grad(F.linear(x.t(), linear.weight, linear.bias).sum(), inputs)
    for a, b in zip(gradients_of_strided, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_linear_in_double_precision_is_that_of_torch() -> None:
    linear = Linear(6, 5).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))


@pytest.mark.parametrize(
    ("vendor", "family", "capability", "expected"),
    [
        ("AuthenticAMD", 26, "AVX512", (0, 0)),
        ("AuthenticAMD", 25, "AVX512", (2**24, 2**19)),
        ("AuthenticAMD", 25, "AVX2", (math.inf, math.inf)),
        ("GenuineIntel", 6, "AVX512", (math.inf, math.inf)),
    ],
)
def test_onednn_multiplies_where_mkl_is_slower(
    vendor: str,
    family: int,
    capability: str,
    expected: tuple[float, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = f"vendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 2"
    monkeypatch.setattr(kernels.Path, "read_text", lambda _, encoding: text)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "_HAS_ONEDNN", True)
    assert kernels._least() == expected


def test_linear_is_initialised_like_that_of_torch() -> None:
    torch.manual_seed(3)
    linear = Linear(6, 5)
    torch.manual_seed(3)
    theirs = torch.nn.Linear(6, 5)
    assert torch.equal(linear.weight, theirs.weight)
    assert torch.equal(linear.bias, theirs.bias)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_flops_of_a_linear_are_counted(device: str) -> None:
    linear = Linear(8, 4).to(device)
    with FlopCounterMode(display=False) as counter:
        linear(torch.zeros(5, 3, 8, device=device))
    assert counter.get_total_flops() == 2 * 15 * 8 * 4


@pytest.mark.parametrize("p", [0.1, 0.5, 0.7])
def test_dropout_drops_the_share_and_keeps_the_mean(p: float) -> None:
    y = dropout(torch.ones(1001, 999), p)
    zeros = (y == 0).double().mean().item()
    assert zeros == pytest.approx(p, abs=0.003)  # six standard deviations
    kept = y[y != 0]
    assert torch.all(kept == kept[0])
    assert kept[0].item() == pytest.approx(1 / (1 - p), rel=1e-4)
    assert y.double().mean().item() == pytest.approx(1.0, abs=0.02)


def test_the_four_elements_of_a_draw_are_independent() -> None:
    dropped = (dropout(torch.ones(100_000, 4), 0.3) == 0).double()
    correlation = torch.corrcoef(dropped.T) - torch.eye(4)
    assert correlation.abs().max() < 0.02


def test_dropout_uses_one_mask_forward_and_backward() -> None:
    x = torch.randn(37, 5, requires_grad=True)
    y = dropout(x, 0.4)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient * x, y)
    assert 0 < int((gradient == 0).sum()) < x.numel()


def test_a_masked_product_and_its_gradient() -> None:
    x = torch.randn(7, 5, requires_grad=True)
    mask = torch.rand(7, 5) < 0.5
    product = kernels._Masked.apply(x, mask, 1.25)
    torch.testing.assert_close(product, x * mask * 1.25)
    for a, b in zip(gradients(product, x), gradients(x * mask * 1.25, x), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.cuda
def test_dropout_on_a_card_equals_that_of_the_cpu_except_the_draws() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.ones(1001, 999, device="cuda", requires_grad=True)
    y = dropout(x, 0.3, torch.Generator("cuda").manual_seed(1))
    again = dropout(x, 0.3, torch.Generator("cuda").manual_seed(1))
    assert torch.equal(y, again)
    assert (y == 0).double().mean().item() == pytest.approx(0.3, abs=0.003)
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / 0.7))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y)


def test_dropout_follows_the_generator_of_torch() -> None:
    module, x = Dropout(0.5), torch.randn(50)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = module(x), module(x)
    torch.set_rng_state(state)
    assert torch.equal(module(x), first)
    assert torch.equal(module(x), second)
    assert not torch.equal(first, second)


def test_dropout_does_nothing_in_evaluation_or_at_probability_zero() -> None:
    x = torch.randn(50)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("keys", [3, 15, 16, 40])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_its_formula(keys: int, causal: bool) -> None:
    q, k, v = (torch.randn(2, 3, keys, 4, requires_grad=True) for _ in range(3))
    logits = q @ k.transpose(-1, -2) / 2
    if causal:
        logits = logits.masked_fill(torch.ones(keys, keys).triu(1).bool(), -torch.inf)
    expected = logits.softmax(-1) @ v
    output = attend(q, k, v, 0.0, causal)
    torch.testing.assert_close(output, expected)
    for a, b in zip(gradients(output, q, k, v), gradients(expected, q, k, v), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("keys", [12, 24])
@pytest.mark.parametrize("queries", [1, 5, 12])
def test_causal_queries_are_those_of_the_last_tokens(queries: int, keys: int) -> None:
    q, k, v = (torch.randn(3, 2, keys, 4, requires_grad=True) for _ in range(3))
    expected = attend(q, k, v, 0.0, True)[..., -queries:, :]
    output = attend(q[..., -queries:, :], k, v, 0.0, True)
    torch.testing.assert_close(output, expected)
    for a, b in zip(gradients(output, q, k, v), gradients(expected, q, k, v), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    core = AttentionCore(0.0, causal=True)
    A = core.weights(q, k)[..., -queries:, :]
    torch.testing.assert_close(core.weights(q[..., -queries:, :], k), A)


@pytest.mark.parametrize("keys", [12, 24])
@pytest.mark.parametrize("causal", [False, True])
def test_dropout_of_attention_drops_weights(keys: int, causal: bool) -> None:
    q, k = torch.randn(40, 4, keys, 8), torch.randn(40, 4, keys, 8)
    v = torch.eye(keys).expand(40, 4, keys, keys)  # so that the output is the weights
    whole = attend(q, k, v, 0.0, causal)
    dropped = attend(q, k, v, 0.25, causal)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.75)
    share = (~kept & (whole > 0)).sum() / (whole > 0).sum()
    assert share.item() == pytest.approx(0.25, abs=0.02)


def attended(
    shape: tuple[int, int, int, int], keys: int, causal: bool
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """O, the gradients of q, k and v (in a fused layout), and a next random number."""
    windows, heads, queries, width = shape
    q, k, v = (
        torch.randn(windows, n, heads, width, requires_grad=True) for n in (queries, keys, keys)
    )
    generator = torch.Generator().manual_seed(1)
    O = attend(*(x.transpose(1, 2) for x in (q, k, v)), 0.25, causal, generator)  # noqa: E741
    return O, gradients(O, q, k, v), torch.rand(3, generator=generator)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("part", [4, 1200, 2**20])
@pytest.mark.parametrize(
    ("shape", "keys"), [((3, 4, 20, 8), 20), ((2, 1, 33, 5), 33), ((2, 3, 17, 4), 31)]
)
def test_attention_without_kept_weights_computes_the_same(
    shape: tuple[int, int, int, int],
    keys: int,
    part: int,
    causal: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    expected, its_gradients, next_draws = attended(shape, keys, causal)
    monkeypatch.setattr(kernels, "LARGE", 1)
    monkeypatch.setattr(kernels, "PART", part)
    torch.manual_seed(0)
    output, of_found, drawn = attended(shape, keys, causal)
    assert output.grad_fn is not None and output.grad_fn.name() == "_AttentionBackward"
    assert torch.equal(drawn, next_draws)
    # Products of another number of heads may be rounded differently.
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(output == 0, expected == 0)
    for a, b in zip(of_found, its_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def saved(make: Callable[[], object]) -> int:
    """Bytes that autograd stores for the backward pass."""
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        made = make()
    del made
    return sum(storages.values())


def test_wide_attention_keeps_a_byte_a_weight() -> None:
    heads, keys = 8, 321
    assert heads * keys**2 >= kernels.LARGE
    q, k, v = (torch.randn(2, heads, keys, 4, requires_grad=True) for _ in range(3))
    weights = 2 * heads * keys**2
    assert weights < saved(lambda: attend(q, k, v, 0.1, False)) < 1.2 * weights


@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_the_published_narrow_series_stores_its_weights(causal: bool) -> None:
    """The Transformer's 96 steps, PatchTST's 42 patches, 21 channels: weights are kept."""
    for keys in (96, 42, 25):
        q = torch.randn(2, 8, keys, 4, requires_grad=True)
        assert attend(q, q, q, 0.1, causal).grad_fn.name() == "UnsafeViewBackward0"  # type: ignore[union-attr]


def test_dropout_with_stored_bytes_is_bit_identical(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(7, 33, 5, requires_grad=True)
    results = []
    for large in (2**60, 1):
        monkeypatch.setattr(kernels, "LARGE", large)
        monkeypatch.setattr(kernels, "PART", 64)
        generator = torch.Generator().manual_seed(3)
        y = dropout(x, 0.3, generator)
        results.append((y, *gradients(y, x), torch.rand(3, generator=generator)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    assert saved(lambda: dropout(x, 0.1)) == x.numel()


def test_a_network_of_many_channels_trains_to_the_same_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    channels = 257
    settings = setup("iTransformer", "published", "Electricity", 96, {"d_model": 16, "d_ff": 16})
    x, y = torch.randn(2, 3, 96, channels), torch.randn(2, 3, 96, channels)
    shape = Shape(96, 96, channels, len(TIME_FEATURES))
    marks = torch.randn(3, 96, len(TIME_FEATURES))
    trained = []
    assert 8 * channels**2 >= kernels.LARGE
    for large in (2**60, kernels.LARGE):
        monkeypatch.setattr(kernels, "LARGE", large)
        model = build("iTransformer", settings.settings, shape, 0).train()
        kernels.draw_from(model, torch.Generator().manual_seed(2))
        optimiser = torch.optim.Adam(model.parameters(), 1e-3)
        for past, future in zip(x, y, strict=True):
            optimiser.zero_grad()
            F.mse_loss(model(past, marks, marks), future).backward()
            optimiser.step()
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    # Adam's first steps are as long for a gradient of rounding errors as for a large one.
    torch.testing.assert_close(*trained, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept() -> None:
    code = """
import resource, torch
from spat.training.device.kernels import keep_freed_memory
torch.set_num_threads(1)
x = torch.zeros(1 << 20)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        [x + i for i in range(12)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
default = faults()
keep_freed_memory()
# The heap may still grow by a block or two until it fits.
print(default, min(faults() for _ in range(5)))
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    default, kept = map(int, run.stdout.split())
    assert kept < default / 20
