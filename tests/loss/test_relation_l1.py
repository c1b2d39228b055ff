from __future__ import annotations

import pytest
import torch

from timelapse.loss import relation_l1 as module
from timelapse.loss.relation_l1 import relation_l1


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(module, "TILE", 7)


@pytest.mark.parametrize("pairs", ["full", "spatial", "temporal"])
@pytest.mark.parametrize("margin, diagonal", [(0.0, False), (0.1, True)])
def test_equals_the_naive_form_with_its_gradient(features, naive, pairs, margin, diagonal):
    x, y = features(2, 60, 9)
    x.requires_grad_()
    mine, theirs = (f(x, y, 4, pairs, margin=margin, diagonal=diagonal) for f in (relation_l1, naive))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)
    weight = torch.tensor([0.3, -2.0], dtype=torch.float64)
    gradient, expected = (torch.autograd.grad((value * weight).sum(), x)[0] for value in (mine, theirs))
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


def test_gradcheck(features):
    x, y = features(1, 9, 3, seed=3)
    assert torch.autograd.gradcheck(lambda x: relation_l1(x, y, margin=0.05), x.requires_grad_())


def test_known_value_and_margin():
    x = torch.tensor([[[3.0, 0.0], [0.0, 0.5], [2.0, 2.0]]], dtype=torch.float64)
    y = torch.tensor([[[1.0, 1.0], [2.0, 2.0], [0.1, 0.1]]], dtype=torch.float64)
    small = 1 - 0.5**0.5  # two of the three pairs differ by this, one by 1
    assert relation_l1(x, y).item() == pytest.approx((1 + 2 * small) / 3, rel=1e-12)
    assert relation_l1(x, y, margin=0.5).item() == pytest.approx(0.5 / 3, rel=1e-12)
    assert relation_l1(x, y, margin=0.1, diagonal=True).item() == pytest.approx(
        2 * (0.9 + 2 * (small - 0.1)) / 9, rel=1e-12
    )


def test_rows_without_direction(features, naive):
    x, y = features(1, 24, 6)
    x[0, 3] = 0
    y[0, 8] = 0
    x.requires_grad_()
    for diagonal in (False, True):
        loss = relation_l1(x, y, diagonal=diagonal)
        torch.testing.assert_close(loss, naive(x, y, diagonal=diagonal), rtol=1e-10, atol=0)
    gradient = torch.autograd.grad(loss.sum(), x)[0]
    assert gradient[0, 3].abs().max() == 0
    assert torch.isfinite(gradient).all()


def test_autocast_changes_nothing(features):
    x, y = (v.float() for v in features(2, 60, 9))
    x.requires_grad_()
    plain = relation_l1(x, y)
    gradient = torch.autograd.grad(plain.sum(), x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = relation_l1(x, y)
        assert torch.equal(inside, plain)
        assert torch.equal(torch.autograd.grad(inside.sum(), x)[0], gradient)
