from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from timelapse.loss import relation_l2 as module
from timelapse.loss.relation_l2 import relation_l2

PAIRS = ["full", "spatial", "temporal"]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks and strips, the last ones uneven, at the size of a test."""
    monkeypatch.setattr(module, "ROWS", {"cpu": 7})
    monkeypatch.setattr(module, "STRIP", 5)


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("tokens, width", [(60, 9), (24, 40)])
def test_equals_the_naive_form_with_its_gradient(features, naive, pairs, tokens, width):
    x, y = features(3, tokens, width)
    x.requires_grad_()
    mine, theirs = relation_l2(x, y, 4, pairs), naive(x, y, 4, pairs, power=2)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=0)
    weight = torch.tensor([0.3, -2.0, 1.1], dtype=torch.float64)
    gradient, expected = (torch.autograd.grad((value * weight).sum(), x)[0] for value in (mine, theirs))
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


def test_known_value():
    # Cosines of x: 0 and 1/sqrt(2) twice; of y: 1, 1, 1. Squares 1, (1 - 1/sqrt(2))^2 twice, each pair twice of six.
    x = torch.tensor([[[3.0, 0.0], [0.0, 0.5], [2.0, 2.0]]], dtype=torch.float64)
    y = torch.tensor([[[1.0, 1.0], [2.0, 2.0], [0.1, 0.1]]], dtype=torch.float64)
    assert relation_l2(x, y).item() == pytest.approx((1 + 2 * (1 - 0.5**0.5) ** 2) / 3, rel=1e-12)


def test_parts_add_up_to_the_whole(features):
    x, y = features(2, 60, 9)
    full, spatial, temporal = (relation_l2(x, y, 5, pairs) for pairs in PAIRS)
    torch.testing.assert_close(59 * full, 11 * spatial + 48 * temporal, rtol=1e-12, atol=0)


def test_rotation_and_row_scale_change_nothing(features):
    x, y = features(2, 50, 12)
    rotation = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    scale = torch.linspace(0.1, 30, 50, dtype=torch.float64)[:, None]
    expected = relation_l2(x, y)
    torch.testing.assert_close(relation_l2(x @ rotation, y), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(relation_l2(x * scale, y * scale.flip(0)), expected, rtol=1e-10, atol=0)


def test_zero_for_rotated_features_and_symmetric_in_its_arguments(features):
    x, y = features(1, 50, 12)
    rotation = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    assert relation_l2(y @ rotation, y).item() < 1e-15
    torch.testing.assert_close(relation_l2(x, y), relation_l2(y, x), rtol=1e-10, atol=0)


@pytest.mark.parametrize("pairs", PAIRS)
def test_gradcheck(features, pairs):
    x, y = features(1, 9, 3)
    assert torch.autograd.gradcheck(lambda x: relation_l2(x, y, 3, pairs), x.requires_grad_())


def nearly_aligned(features, noise):
    _, y = features(1, 400, 64)
    g = torch.Generator().manual_seed(1)
    x = y + noise * y.std() * torch.randn(y.shape, generator=g, dtype=torch.float64)
    return x.float(), y.float()


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("noise", [1e-1, 1e-3])
def test_float32_stays_exact_when_the_loss_is_tiny(features, naive, pairs, noise):
    x, y = nearly_aligned(features, noise)
    exact = naive(x.double(), y.double(), 4, pairs, power=2)
    if noise == 1e-3:
        assert exact.item() < 2e-7
    torch.testing.assert_close(relation_l2(x, y, 4, pairs).double(), exact, rtol=2e-4, atol=0)
    h, u = F.normalize(x[0], dim=1), F.normalize(y[0], dim=1)
    three_terms = ((h.T @ h).square().sum() + (u.T @ u).square().sum() - 2 * (h.T @ u).square().sum()) / (400 * 399)
    if pairs == "full" and noise == 1e-3:  # the form that cancels loses the value
        assert abs(three_terms.item() / exact.item() - 1) > 0.01


def test_tiny_float32_gradient(features, naive):
    x, y = nearly_aligned(features, 1e-3)
    mine = torch.autograd.grad(relation_l2(x.requires_grad_(), y).sum(), x)[0].double()
    exact = x.detach().double().requires_grad_()
    expected = torch.autograd.grad(naive(exact, y.double(), power=2).sum(), exact)[0]
    assert (mine - expected).norm() < 2e-3 * expected.norm()


@pytest.mark.parametrize("pairs", PAIRS)
def test_rows_without_direction_have_cosine_zero_and_no_gradient(features, naive, pairs):
    x, y = features(1, 24, 6)
    x[0, 3] = 0
    y[0, 8] = 0
    x[0, 17] = y[0, 17] = 0
    x.requires_grad_()
    loss = relation_l2(x, y, 4, pairs)
    torch.testing.assert_close(loss, naive(x, y, 4, pairs, power=2), rtol=1e-10, atol=0)
    gradient = torch.autograd.grad(loss.sum(), x)[0]
    assert gradient[0, [3, 17]].abs().max() == 0
    assert torch.isfinite(gradient).all()
    moved = [i for i in range(24) if i not in (3, 17)]
    expected = torch.autograd.grad(naive(x, y, 4, pairs, power=2).sum(), x)[0]
    torch.testing.assert_close(gradient[0, moved], expected[0, moved], rtol=1e-9, atol=1e-14)


def test_autocast_and_reduced_precision_products_change_nothing(features):
    x, y = (v.float() for v in features(2, 60, 9))
    x.requires_grad_()
    plain = relation_l2(x, y)
    gradient = torch.autograd.grad(plain.sum(), x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = relation_l2(x, y)
        assert inside.dtype == torch.float32
        assert torch.equal(inside, plain)
        assert torch.equal(torch.autograd.grad(inside.sum(), x)[0], gradient)


def test_bfloat16_tokens_are_compared_in_float32(features, naive):
    x, y = features(1, 60, 9)
    x = x.bfloat16().requires_grad_()
    loss = relation_l2(x, y)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), naive(x.double(), y, power=2), rtol=1e-5, atol=0)
    gradient = torch.autograd.grad(loss.sum(), x)[0]
    assert gradient.dtype == torch.bfloat16


def test_memory_does_not_grow_with_the_number_of_pairs(monkeypatch):
    from torch.profiler import ProfilerActivity, profile

    monkeypatch.setattr(module, "ROWS", {"cpu": 256})
    monkeypatch.setattr(module, "STRIP", 256)
    tokens, width = 3000, 32
    x, y = torch.randn(1, tokens, width, requires_grad=True), torch.randn(1, tokens, width)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        relation_l2(x, y).sum().backward()
    events = [(e.start_ns(), e.nbytes()) for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, size in sorted(events):
        held += size
        peak = max(peak, held)
    assert held == x.grad.nbytes  # nothing else is left
    assert peak < x.grad.nbytes + 4 * (256 * 6 * width + 16 * width**2)  # (N,N) would be 94 times the gradient


def test_a_clip_does_not_see_the_others(features):
    x, y = features(3, 20, 5)
    alone = torch.cat([relation_l2(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(relation_l2(x, y), alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "tokens, frames, pairs, message",
    [
        (12, 1, "temporal", "hold no temporal pair"),
        (4, 4, "spatial", "hold no spatial pair"),
        (1, 1, "full", "hold no full pair"),
        (10, 3, "full", "do not divide"),
        (10, 2, "cross", "choose full, spatial or temporal"),
    ],
)
def test_refuses_what_has_no_pairs(tokens, frames, pairs, message):
    with pytest.raises(ValueError, match=message):
        relation_l2(torch.randn(1, tokens, 3), torch.randn(1, tokens, 3), frames, pairs)


def test_refuses_different_widths():
    with pytest.raises(ValueError, match=r"got \(1, 4, 3\), \(1, 4, 2\)"):
        relation_l2(torch.randn(1, 4, 3), torch.randn(1, 4, 2))
