"""The selective scan equals a plain loop under autograd, and the block around it its formula."""

import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from small_models import gradients
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from spat.models.layers import scan
from spat.models.layers.scan import Mamba, selective_scan

SIZES = [(2, 5, 3, 4), (3, 1, 2, 2), (1, 7, 1, 6), (4, 6, 1, 3), (2, 5, 1, 1)]


def plain(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The scan by its formula, one token at a time."""
    h, ys = x.new_zeros(x.shape[0], x.shape[2], A.shape[1]), []
    for t in range(x.shape[1]):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta * x)[:, t, :, None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1))
    return torch.stack(ys, 1)


def inputs(
    windows: int, tokens: int, features: int, states: int, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=dtype)

    drawn = (
        draw(windows, tokens, features),
        F.softplus(draw(windows, tokens, features)),
        -draw(features, states).exp(),
        draw(windows, tokens, states),
        draw(windows, tokens, states),
    )
    return [t.requires_grad_() for t in drawn]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_are_those_of_finite_differences(size: tuple[int, ...]) -> None:
    assert torch.autograd.gradcheck(selective_scan, inputs(*size))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_a_plain_loop_under_autograd(size: tuple[int, ...]) -> None:
    given = inputs(*size)
    y, expected = selective_scan(*given), plain(*given)
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=1e-12)
    for actual, wanted in zip(gradients(y, *given), gradients(expected, *given), strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-12, rtol=1e-12)
    with torch.no_grad():  # keeps only the last state
        assert torch.equal(selective_scan(*given), y)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_flops_are_those_of_the_products_of_states(size: tuple[int, ...], device: str) -> None:
    """Two for each state of each token, whatever the number of features and the device."""
    given = [t.detach().to(device) for t in inputs(*size)]
    with FlopCounterMode(display=False) as counter:
        y = selective_scan(*given)
    assert counter.get_total_flops() == 2 * math.prod(size)
    assert y.shape == given[0].shape and y.device.type == device


def test_a_long_scan_in_float32_stays_close_to_float64() -> None:
    given = inputs(2, 200, 8, 16, torch.float32)
    exact = [t.detach().double().requires_grad_() for t in given]
    y, expected = selective_scan(*given), plain(*exact)
    torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=1e-4)
    for actual, wanted in zip(gradients(y, *given), gradients(expected, *exact), strict=True):
        scale = wanted.abs().max()
        torch.testing.assert_close(actual.double() / scale, wanted / scale, atol=1e-5, rtol=1e-4)


def test_half_precision_is_computed_in_float32() -> None:
    given = inputs(2, 5, 3, 4, torch.float32)
    half = [t.detach().bfloat16() for t in given]
    expected = selective_scan(*(t.float() for t in half))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = selective_scan(*half)
    assert y.dtype == torch.float32
    assert torch.equal(y, expected)


def test_the_fused_kernel_gets_its_own_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the signature and the layout [batch, features, tokens] of `mamba_ssm`."""

    def selective_scan_fn(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        assert all(t.is_contiguous() for t in (u, delta, B, C))
        u, delta, B, C = (t.transpose(1, 2) for t in (u, delta, B, C))
        return plain(u, delta, A, B, C).transpose(1, 2)

    package = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    package.selective_scan_fn = selective_scan_fn  # type: ignore[attr-defined]
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setattr(scan.importlib.util, "find_spec", lambda _name: object())
    scan._fused_kernel.cache_clear()
    try:
        kernel = scan._fused_kernel()
    finally:
        scan._fused_kernel.cache_clear()
    assert kernel is selective_scan_fn
    given = inputs(2, 5, 3, 4)
    torch.testing.assert_close(scan._fused(kernel, *given), selective_scan(*given))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fused", [False, True])
def test_the_scan_on_a_card_equals_that_on_the_cpu(
    fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fused:
        pytest.importorskip("mamba_ssm")
    else:
        monkeypatch.setattr(scan, "_fused_kernel", lambda: None)
    given = inputs(2, 30, 16, 4, torch.float32)
    there = [t.detach().cuda().requires_grad_() for t in given]
    y, expected = selective_scan(*there), selective_scan(*given)
    torch.testing.assert_close(y.cpu(), expected, atol=1e-4, rtol=1e-4)
    cotangent = torch.randn_like(expected)
    actual = torch.autograd.grad(y, there, cotangent.cuda())
    theirs = torch.autograd.grad(expected, given, cotangent)
    for a, b in zip(actual, theirs, strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=1e-3, rtol=1e-3)


def block(**changes: int | bool) -> Mamba:
    torch.manual_seed(0)
    return Mamba(24, **{"states": 3, "kernel": 4, "expand": 2, **changes}).double()


def by_formula(block: Mamba, u: Tensor) -> Tensor:
    """The block by the formulas of the paper, with torch's own convolution and a plain scan."""
    x, z = F.linear(u, block.input.weight).chunk(2, -1)
    features, taps = x.shape[-1], len(block.kernel)
    convolved = F.conv1d(
        x.transpose(1, 2),
        block.kernel.t().unsqueeze(1),
        block.kernel_bias,
        padding=taps - 1,
        groups=features,
    )[..., : x.shape[1]]
    x = F.silu(convolved.transpose(1, 2))
    rank, B, C = F.linear(x, block.selection.weight).split([2, 3, 3], -1)
    delta = F.softplus(F.linear(rank, block.delta.weight, block.delta.bias))
    A = block.log_A if block.log_A is not None else torch.zeros(features, 3)
    y = plain(x, delta, -A.exp(), B, C) + block.skip * x
    return F.linear(y * F.silu(z), block.out.weight)


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_the_block_follows_its_formula(tokens: int) -> None:
    mamba, u = block(), torch.randn(2, tokens, 24, dtype=torch.float64)
    with torch.no_grad():
        mamba.log_A.add_(0.3)
    torch.testing.assert_close(mamba(u), by_formula(mamba, u))


def test_the_block_is_causal_and_can_read_backwards() -> None:
    mamba, reverse = block(), block(backwards=True)
    reverse.load_state_dict(mamba.state_dict())
    u = torch.randn(2, 9, 24, dtype=torch.float64)
    torch.testing.assert_close(reverse(u), mamba(u.flip(1)).flip(1))
    changed = u.clone()
    changed[:, 4] += 1
    for module, moved in ((mamba, slice(4, 9)), (reverse, slice(0, 5))):
        steps = (module(u) - module(changed)).abs().amax((0, 2)) > 0
        assert steps.nonzero().flatten().tolist() == list(range(9))[moved]


def test_a_block_for_one_token_is_the_full_block_without_decay() -> None:
    full, short = block(), block(one_token=True)
    short.load_state_dict({k: v for k, v in full.state_dict().items() if k != "log_A"})
    u = torch.randn(4, 1, 24, dtype=torch.float64)
    torch.testing.assert_close(short(u), full(u))
    with pytest.raises(ValueError, match="for one token got 2"):
        short(u.expand(4, 2, 24))


def test_parameters_and_initialisation_are_those_of_mamba() -> None:
    mamba = Mamba(128, states=16, kernel=4, expand=2)
    d, D, N, k, r = 128, 256, 16, 4, 8
    expected = 2 * d * D + D * (k + 1) + D * (r + 2 * N) + r * D + D + D * N + D + D * d
    assert sum(p.numel() for p in mamba.parameters()) == expected
    assert mamba.log_A is not None
    torch.testing.assert_close(mamba.log_A[7].exp(), torch.arange(1.0, 17.0))
    steps = F.softplus(mamba.delta.bias)
    assert 1e-3 * 0.99 < steps.min() < 2e-3
    assert 0.05 < steps.max() < 0.1 * 1.01
    assert mamba.delta.weight.abs().max() <= 1 / math.sqrt(r)
    assert mamba.kernel.abs().max() <= 0.5
    assert torch.equal(mamba.skip, torch.ones(D))


def test_a_gradient_reaches_every_parameter() -> None:
    for module in (block(), block(backwards=True)):
        module(torch.randn(2, 5, 24, dtype=torch.float64)).square().sum().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
