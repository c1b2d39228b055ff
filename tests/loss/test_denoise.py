from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from timelapse.loss.denoise import Denoise


def squared(a, b):
    return (a - b).square().flatten(1).mean(1)


def test_views_are_the_errors_they_name(step):
    s = step(t=(3, 500, 999))
    eps_hat = s.sigma * s.zt + s.alpha * s.output
    torch.testing.assert_close(Denoise()(s), squared(s.output, s.target))
    torch.testing.assert_close(Denoise(view="x0")(s), squared(s.z0_hat, s.z0), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(Denoise(view="eps")(s), squared(eps_hat, s.noise), rtol=1e-4, atol=1e-7)


def test_weighted_x0_loss_is_the_v_loss_also_without_signal(step):
    s = step(t=(3, 500, 999))
    assert s.alpha[2].item() == 0  # zero terminal SNR
    abar = s.alpha.flatten().square()
    by_definition = squared(s.z0_hat, s.z0) / (1 - abar)
    assert 1 / (1 - abar[2]) == 1
    torch.testing.assert_close(by_definition, Denoise()(s), rtol=1e-4, atol=0)
    torch.testing.assert_close(Denoise(view="x0", inverse_noise_weight=True)(s), Denoise()(s), rtol=1e-4, atol=0)


def test_views_name_the_same_errors_whatever_the_network_says(step):
    """A network of noise and one of v that say the same about the clip have the same x0 and eps losses."""
    v = step(t=(3, 500, 900))
    said = v.sigma * v.zt + v.alpha * v.output
    eps = replace(v, output=said, target=v.noise)
    for view in ("x0", "eps"):
        assert torch.equal(Denoise(view=view)(eps), Denoise(view=view)(v))
    torch.testing.assert_close(Denoise(view="eps")(eps), Denoise()(eps), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("view", ["target", "x0", "eps"])
def test_finite_with_finite_gradient_at_both_ends(step, view):
    s = step(t=(0, 999))
    s.sigma = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1, 1)  # a process with an end free of noise, too
    s.alpha = torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1, 1)
    s.output.requires_grad_()
    s.zt = s.alpha * s.z0 + s.sigma * s.noise
    s.z0_hat = s.alpha * s.zt - s.sigma * s.output
    for weighted in {False, view == "x0"}:
        loss = Denoise(view=view, inverse_noise_weight=weighted)(s)
        (gradient,) = torch.autograd.grad(loss.sum(), s.output, retain_graph=True)
        assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()
    if view == "eps":
        assert loss[1] == 0  # nothing to learn about the noise when the input is the noise


def test_half_precision_outputs_are_compared_in_float32(step):
    s = step()
    expected = Denoise()(s)
    s.output = s.output.bfloat16()
    loss = Denoise()(s)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)


def test_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="choose one of target, x0, eps"):
        Denoise(view="x1")
    with pytest.raises(ValueError, match="belongs to view=x0"):
        Denoise(view="target", inverse_noise_weight=True)


def test_given_frames_are_not_scored(step):
    s = step()
    s.output = s.output.clone()
    s.output[:, 0] += 5.0
    rest = (s.output - s.target)[:, 1:].square().flatten(1).mean(1)
    torch.testing.assert_close(Denoise(from_frame=1)(s), rest)
    assert (Denoise()(s) > rest).all()
