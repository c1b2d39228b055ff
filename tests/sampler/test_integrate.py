from __future__ import annotations

import math

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler

from timelapse.process import Process
from timelapse.sampler.integrate import check_stride, ddim, dpm, redraw, timesteps

PROCESS = Process()


def test_times_are_diffusers_for_every_usual_number_of_steps():
    scheduler = CogVideoXDDIMScheduler(timestep_spacing="trailing")
    for steps in (1, *range(4, 65), 100, 250, 1000):
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps.tolist()
        assert timesteps(PROCESS, steps) == [t for t in theirs if t >= 0], steps
    assert scheduler.timesteps[-1] == 0 and len(timesteps(PROCESS, 61)) == 61  # diffusers lists 62, the last -1


def test_wrong_numbers_of_steps_are_explained():
    for steps in (0, -1, 1001, 2.5):
        with pytest.raises(ValueError, match="sampler.steps"):
            timesteps(PROCESS, steps)


def test_leading_times_are_stable_diffusions():
    scheduler = DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    for steps in (1, 2, 7, 20, 50, 333):
        scheduler.set_timesteps(steps)
        assert timesteps(PROCESS, steps, "leading") == scheduler.timesteps.tolist(), steps
    assert timesteps(PROCESS, 50, "leading")[0] == 981
    with pytest.raises(ValueError, match="spacing is 'linspace'"):
        timesteps(PROCESS, 5, "linspace")


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_ddim_with_leading_times_is_diffusers(steps):
    """The same network output at every step of both: a fixed function of z and t that says eps."""
    options = {"beta_start": 0.00085, "beta_end": 0.012}
    scheduler = DDIMScheduler(
        **options, beta_schedule="linear", clip_sample=False, steps_offset=1, timestep_spacing="leading"
    )
    process = Process(**options, schedule="linear", prediction="epsilon", zero_terminal_snr=False)
    say = lambda z, t: torch.tanh(z + t / 1000)
    scheduler.set_timesteps(steps)
    theirs = start()
    for t in scheduler.timesteps:
        theirs = scheduler.step(say(theirs, int(t)), t, theirs).prev_sample

    def denoise(z, t):
        return process.to_z0(z, say(z, t), torch.full((len(z),), t))

    ours = ddim(denoise, start(), process, steps, spacing="leading")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def gaussian(mean: float, std: float):
    """The exact denoiser of data N(mean, std^2): E[z0 | zt]."""

    def denoise(zt, t):
        a = PROCESS.alpha_bar[t].item()
        gain = math.sqrt(a) * std**2 / (a * std**2 + 1 - a)
        return mean + gain * (zt - math.sqrt(a) * mean)

    return denoise


def start(clips: int = 4) -> torch.Tensor:
    return torch.randn(clips, 2, 4, 32, 32, generator=torch.Generator().manual_seed(0))


def fresh():
    g = torch.Generator().manual_seed(1)
    return lambda: torch.randn(4, 2, 4, 32, 32, generator=g)


@pytest.mark.parametrize("integrate", [ddim, dpm])
def test_a_known_point_is_reached_exactly(integrate):
    """Data of no spread: whatever the noise, the sample is that point."""
    z = integrate(lambda zt, t: torch.full_like(zt, 0.3), start(), PROCESS, 8, fresh())
    torch.testing.assert_close(z, torch.full_like(z, 0.3))


@pytest.mark.parametrize("integrate", [ddim, dpm])
def test_a_gaussian_comes_out_as_it_is(integrate):
    """Mean and spread of the data, with 32768 draws (standard errors 0.003 and 0.002)."""
    z = integrate(gaussian(0.4, 0.5), start(), PROCESS, 250, fresh())
    assert abs(z.mean() - 0.4) < 0.01
    assert abs(z.std() - 0.5) < 0.01


def test_ddim_of_a_gaussian_is_the_flow_of_its_ode():
    """The probability-flow ODE carries each quantile to the same quantile: z0 = mean + std * noise."""
    noise = start()
    coarse, fine = (ddim(gaussian(0.4, 0.5), noise, PROCESS, steps) for steps in (20, 500))
    error = lambda z: (z - (0.4 + 0.5 * noise)).abs().max().item()
    assert error(fine) < 0.02 < error(coarse)
    assert torch.equal(fine, ddim(gaussian(0.4, 0.5), noise, PROCESS, 500))


def test_one_step_is_the_denoisers_first_guess():
    for integrate in (ddim, dpm):
        z = integrate(gaussian(0.4, 0.5), start(), PROCESS, 1, fresh())
        torch.testing.assert_close(z, torch.full_like(z, 0.4))  # pure noise says nothing: the mean


def test_dpm_noise_is_what_draw_gives():
    z = lambda seed: dpm(gaussian(0.4, 0.5), start(), PROCESS, 6, seeded(seed))
    assert torch.equal(z(3), z(3)) and not torch.equal(z(3), z(4))


def seeded(seed):
    g = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(4, 2, 4, 32, 32, generator=g)


def test_a_number_of_steps_whose_stride_leaves_noise_is_refused_with_better_ones():
    process, std = Process(prediction="v"), 0.3

    def exact(z: torch.Tensor, t: int) -> torch.Tensor:
        """E[z0 | zt] of Gaussian data."""
        a = float(process.alpha_bar[t])
        return a**0.5 * std**2 / (a * std**2 + 1 - a) * z

    def left(steps: int) -> float:
        return (ddim(exact, torch.ones(1, dtype=torch.float64), process, steps) / std).item()

    for steps in (50, 100, 200, 300, 333, 500, 1000):
        check_stride(process, steps)
        assert left(steps) < 1.15
    for steps, better in ((400, "333 or 500"), (501, "500 or 1000"), (700, "500 or 1000")):
        assert left(steps) > 1.2
        with pytest.raises(ValueError, match=f"choose {better}"):
            check_stride(process, steps)


def test_redrawing_begins_where_it_is_told_and_ends_clean():
    """A denoiser that knows the noise gives the latent back from anywhere; from the last time it is ddim from noise."""
    latent, noise = start(), start().flip(-1)

    def knowing(z, t):
        alpha = math.sqrt(float(PROCESS.alpha_bar[t]))
        return (z - math.sqrt(1 - alpha**2) * noise) / alpha

    for first, steps in ((0, 1), (100, 1), (400, 4), (998, 7)):
        back = redraw(knowing, latent, noise, PROCESS, first, steps)
        torch.testing.assert_close(back, latent, rtol=1e-3, atol=1e-3)
    seen = []
    say = lambda z, t: (seen.append(t), torch.tanh(z + t / 1000))[1]
    redrawn, times = redraw(say, latent, noise, PROCESS, 999, 20), seen.copy()
    seen.clear()
    torch.testing.assert_close(redrawn, ddim(say, noise, PROCESS, 20))
    assert times == seen
