from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler

from timelapse.process import Process
from timelapse.randomness import keyed


def reference(snr_shift: float = 1.0) -> CogVideoXDDIMScheduler:
    return CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=snr_shift,
        timestep_spacing="trailing",
    )


def draws() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    t = torch.tensor([0, 1, 499, 998, 999])
    z0, eps = torch.randn(2, 5, 2, 3, 4, 4, generator=g)
    return z0, eps, t


@pytest.mark.parametrize("snr_shift", [1.0, 3.0])
def test_same_bits_as_diffusers(snr_shift):
    theirs, ours = reference(snr_shift), Process(snr_shift=snr_shift)
    assert torch.equal(ours.alpha_bar, theirs.alphas_cumprod)
    z0, eps, t = draws()
    assert torch.equal(ours.noise(z0, eps, t), theirs.add_noise(z0, eps, t))
    assert torch.equal(ours.target(z0, eps, t), theirs.get_velocity(z0, eps, t))
    # The public training scripts get z0 by calling get_velocity with v in the place of the clean sample.
    v = ours.target(z0, eps, t)
    zt = ours.noise(z0, eps, t)
    assert torch.equal(ours.to_z0(zt, v, t), theirs.get_velocity(v, zt, t))


def test_what_the_network_says_gives_the_clip_back_at_every_time():
    process, (z0, eps, t) = Process(), draws()
    zt, v = process.noise(z0, eps, t), process.target(z0, eps, t)
    torch.testing.assert_close(process.to_z0(zt, v, t), z0, rtol=0, atol=2e-6)


def test_last_time_is_pure_noise():
    process, (z0, eps, _) = Process(), draws()
    last = torch.full((5,), 999)
    assert process.alpha(last).abs().max() == 0
    assert torch.equal(process.noise(z0, eps, last), eps)
    assert torch.equal(process.target(z0, eps, last), -z0)
    assert Process(zero_terminal_snr=False).alpha_bar[-1] > 0


def test_weighted_z0_error_is_v_error_also_without_signal():
    process, (z0, eps, t) = Process(), draws()
    v = process.target(z0, eps, t)
    zt = process.noise(z0, eps, t)
    v_hat = v + 0.3 * torch.randn(v.shape, generator=torch.Generator().manual_seed(4))
    weighted = ((process.to_z0(zt, v_hat, t) - process.to_z0(zt, v, t)) / process.sigma(t)) ** 2
    torch.testing.assert_close(weighted, (v_hat - v) ** 2, rtol=1e-3, atol=1e-4)


def test_signal_to_noise_only_falls():
    assert (Process().alpha_bar.diff() < 0).all()


def test_wrong_numbers_are_explained():
    with pytest.raises(ValueError, match="0.00085"):
        Process(beta_start=0.5, beta_end=0.1)
    with pytest.raises(ValueError, match="integer"):
        Process().alpha(torch.tensor([0.5]))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_stable_diffusions_process(schedule):
    """diffusers multiplies in float32: 1e-6 is the rounding of its thousand factors."""
    theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=schedule)
    ours = Process(schedule=schedule, zero_terminal_snr=False, prediction="epsilon")
    torch.testing.assert_close(ours.alpha_bar.float(), theirs.alphas_cumprod, rtol=0, atol=1e-6)
    z0, eps, t = draws()
    zt = ours.noise(z0, eps, t)
    assert ours.target(z0, eps, t) is eps
    torch.testing.assert_close(ours.to_z0(zt, eps, t), z0, rtol=0, atol=3e-5)  # 1 / alpha is 15 at the last time


def test_how_much_signal_the_two_schedules_leave_at_850():
    signal = lambda schedule: float(Process(schedule=schedule, zero_terminal_snr=False).alpha_bar[850])
    assert signal("linear") == pytest.approx(0.0084, abs=1e-4)
    assert signal("scaled_linear") == pytest.approx(0.0233, abs=1e-4)


def test_eps_cannot_be_asked_of_pure_noise():
    with pytest.raises(ValueError, match="zero_terminal_snr=false"):
        Process(prediction="epsilon")
    with pytest.raises(ValueError, match="schedule='cosine'"):
        Process(schedule="cosine")


def test_shifted_training_times_follow_their_law():
    """u -> s u / (1 + (s - 1) u): at s = 3 half of the times lie above 0.75, and every integer time can be drawn."""
    n = 8000
    even, late, early = (Process(time_shift=s).draw([keyed(0, i) for i in range(n)]) for s in (1, 3, 1 / 3))
    assert late.dtype == torch.int64
    for t, below in ((250, 0.1), (500, 0.25), (750, 0.5), (900, 0.75)):  # u = t / (s - (s - 1) t), t in [0,1]
        assert (even < t).float().mean() == pytest.approx(t / 1000, abs=0.02)
        assert (late < t).float().mean() == pytest.approx(below, abs=0.02)
        assert (early >= 1000 - t).float().mean() == pytest.approx(below, abs=0.02)  # its mirror
    half = lambda times: len({*times[times >= 500].tolist()})
    assert half(late) > 490 and late.min() >= 0 and late.max() == 999  # 12 draws a time: no holes
    with pytest.raises(ValueError, match="time_shift"):
        Process(time_shift=0)
