from __future__ import annotations

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from timelapse.edm import Edm
from timelapse.sampler.euler import step


def draws():
    g = torch.Generator().manual_seed(3)
    z0, eps = torch.randn(2, 4, 2, 3, 4, 4, generator=g)
    return z0, eps, torch.tensor([0.002, 0.5, 20.0, 700.0])


def test_preconditioning_is_edms():
    """c_in (z0 + s eps) is zt, c_skip x + c_out F is to_z0, and the EDM-weighted loss is plain v-MSE."""
    process, (z0, eps, s) = Edm(), draws()
    level = s.double().reshape(-1, 1, 1, 1, 1)
    x = z0.double() + level * eps.double()
    torch.testing.assert_close(process.noise(z0, eps, s).double(), x / (level**2 + 1).sqrt(), rtol=0, atol=1e-6)
    output = torch.randn(z0.shape, generator=torch.Generator().manual_seed(9))
    denoised = x / (level**2 + 1) - level / (level**2 + 1).sqrt() * output.double()
    zt = process.noise(z0, eps, s)
    torch.testing.assert_close(process.to_z0(zt, output, s).double(), denoised, rtol=0, atol=1e-5)
    edm = (1 + level**2) / level**2 * (denoised - z0.double()) ** 2
    v = (output - process.target(z0, eps, s)).double() ** 2
    # at s = 0.002 the weight 250 000 magnifies rounding; there the two forms differ by it alone
    torch.testing.assert_close(edm[1:].mean((1, 2, 3, 4)), v[1:].mean((1, 2, 3, 4)), rtol=1e-5, atol=1e-6)


def test_what_the_network_says_gives_the_clip_back():
    process, (z0, eps, s) = Edm(), draws()
    zt, v = process.noise(z0, eps, s), process.target(z0, eps, s)
    torch.testing.assert_close(process.to_z0(zt, v, s), z0, rtol=0, atol=1e-5)
    torch.testing.assert_close(process.alpha(s) ** 2 + process.sigma(s) ** 2, torch.ones(4, 1, 1, 1, 1))


@pytest.mark.parametrize("steps", [1, 7, 25, 50])
def test_noise_levels_are_the_schedulers(steps):
    from timelapse.model.svd_export import scheduler

    theirs: EulerDiscreteScheduler = scheduler(type("Model", (), {"process": Edm()}))
    theirs.set_timesteps(steps)
    assert Edm().levels(steps) == theirs.sigmas.tolist()
    assert Edm().levels(steps)[0] == 700.0


def test_training_levels_are_log_normal_and_keyed_by_clip():
    process = Edm()
    generators = [torch.Generator().manual_seed(i) for i in range(4000)]
    log = process.draw(generators).log()
    assert abs(log.mean() - 0.7) < 0.1 and abs(log.std() - 1.6) < 0.1
    alone = process.draw([torch.Generator().manual_seed(7)])
    assert alone.item() == log[7].exp().item() or abs(alone.log().item() - log[7].item()) < 1e-6


def test_step_then_noise_restores_the_variance():
    """s_next^2 + (s^2 - s_next^2) = s^2: a perfect denoiser's step and re-noising ends at level s again."""
    levels = Edm().levels(10)
    g = torch.Generator().manual_seed(2)
    z0, eps, fresh = torch.randn(3, 200_000, generator=g, dtype=torch.float64)
    s, after = levels[4], levels[5]
    x = step(z0 + s * eps, z0, s, after)
    torch.testing.assert_close(x, z0 + after * eps)
    again = x + (s**2 - after**2) ** 0.5 * fresh
    assert abs((again - z0).std() / s - 1) < 0.01


def test_wrong_numbers_are_said():
    with pytest.raises(ValueError, match="0.002, 700, 7, 1.6"):
        Edm(minimum=0.0)
