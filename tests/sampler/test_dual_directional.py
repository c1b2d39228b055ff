"""Fusing, recurrence and jumps, on denoisers whose answers are known and on a small random SVD."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from timelapse.edm import Edm
from timelapse.process import Process
from timelapse.randomness import randn
from timelapse.sampler.dual_directional import DualDirectional
from timelapse.sampler.euler import euler, euler_with_jumps, jumping, step
from timelapse.sampler.fuse import fused
from timelapse.sampler.init import FrameInit
from timelapse.sampler.integrate import ddim
from timelapse.sampler.standard import Standard
from timelapse.sampler.time_reversal import TimeReversal
from timelapse.types import Condition

REVERSE = {"train": ["to_v", "to_out.0"], "rotate": "all", "delta": None}
FRAMES = 4
SCHEDULE = Process(zero_terminal_snr=False, schedule="scaled_linear")
draws = lambda seed: partial(randn, (5, 4, 4, 4), [torch.Generator().manual_seed(seed)])


class Counting(torch.nn.Module):
    """A network whose v is known for each motion, and how often it was asked."""

    def __init__(self, ahead: torch.Tensor, back: torch.Tensor):
        super().__init__()
        self.answers, self.calls = {"forward": ahead, "both": torch.stack([ahead, back])}, []

    def forward(self, zt, t, condition, taps=(), motion=None):
        self.calls.append((motion, len(zt)))
        repeat = len(zt) // self.answers["forward"].shape[0]
        told = condition.tokens.mean((1, 2)).reshape(-1, 1, 1, 1, 1)  # differs between the guidance branches
        return torch.cat([self.answers[motion]] * repeat, dim=-5) * (1 + told), {}


class Model:
    process = Edm()

    @staticmethod
    def unconditional(condition):
        return Condition(condition.latent * 0, condition.known, condition.tokens * 0)


def clip(seed: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, FRAMES, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def told(batch: int = 1) -> Condition:
    tokens = torch.full((batch, 2, 3), 0.5)
    return Condition(clip(8, batch), torch.ones(batch, FRAMES, dtype=torch.bool), tokens)


def v_of(denoise, zt, level):
    process, t = Edm(), torch.tensor([level])
    return (process.alpha(t) * zt - denoise(zt, level)) / process.sigma(t)


@pytest.mark.parametrize("weights", ["average", "linear"])
def test_fusing_a_prediction_with_itself_gives_it_back(weights):
    v = clip(1)
    denoise = fused(Model, told(), Counting(v, v), "both", weights, (1.0, 1.0))
    torch.testing.assert_close(v_of(denoise, clip(2), 3.0), v * 1.5, rtol=0, atol=1e-5)


def test_weights_and_guidance_of_both_variants_are_the_public_codes():
    ahead, back, zt = clip(1), clip(2), clip(3)
    # conditional answer 1.5 v, unconditional v: guidance g gives v (1 + g / 2)
    ramp = torch.linspace(1, 3, FRAMES).reshape(1, -1, 1, 1, 1)
    linear = torch.linspace(1, 0, FRAMES).reshape(1, -1, 1, 1, 1)
    expected = {
        "average": 0.5 * ahead * (1 + 2.0 / 2) + 0.5 * back * (1 + 2.0 / 2),  # the averaged ramp is 2 on every frame
        "linear": linear * ahead * (1 + ramp / 2) + (1 - linear) * back * (1 + ramp.flip(1) / 2),
        "forward": ahead * (1 + ramp / 2),
    }
    for weights, v in expected.items():
        network = Counting(ahead, back)
        denoise = fused(Model, told(), network, "both", weights, (1.0, 3.0))
        torch.testing.assert_close(v_of(denoise, zt, 2.0), v, rtol=0, atol=1e-5)
        assert network.calls == [("forward" if weights == "forward" else "both", 2)]


def test_fusing_before_the_step_is_fusing_after_it():
    zt, level, after = clip(3), 2.0, 0.7
    process, t = Edm(), torch.tensor([level])
    ahead, back, w = clip(1), clip(2), torch.linspace(1, 0, FRAMES).reshape(1, -1, 1, 1, 1)
    x = zt * math.sqrt(level**2 + 1)
    before = step(x, process.to_z0(zt, w * ahead + (1 - w) * back, t), level, after)
    each = [step(x, process.to_z0(zt, v, t), level, after) for v in (ahead, back)]
    torch.testing.assert_close(before, w * each[0] + (1 - w) * each[1], rtol=0, atol=1e-5)


def test_recurrence_runs_the_networks_as_often_as_the_public_code():
    def evaluations(steps, recurrence, share):
        v = clip(1)
        network = Counting(v, v)
        sampler = DualDirectional(steps, (1.0, 1.0), "average", recurrence, share, progress=False)
        sampler(Model, told(), None, clip(4), lambda: clip(5), network)
        return len(network.calls)

    assert evaluations(10, 0, 0.5) == 10
    assert evaluations(10, 5, 0.5) == 5 * 6 + 5
    assert evaluations(7, 2, 0.5) == 3 * 3 + 4  # int(3.5) steps repeat
    assert evaluations(1, 5, 0.5) == 1


def test_an_exact_gaussian_denoiser_gives_its_gaussian_with_and_without_recurrence():
    """Data N(mean, std^2), whose best denoiser is known: many steps give its mean and deviation."""
    mean, std = 0.4, 0.7

    def denoise(zt, level):
        x = zt * math.sqrt(level**2 + 1)
        return mean + std**2 / (std**2 + level**2) * (x - mean)

    g = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 1, 50, 50, generator=g)
    draw = lambda: torch.randn(noise.shape, generator=g)
    for options in ({}, {"recurrence": 5}):
        out = euler(denoise, noise, Edm(), 200, draw, **options)
        assert abs(out.mean() - mean) < 0.02 and abs(out.std() - std) < 0.05
    out = euler_with_jumps(denoise, noise, Edm(), 200, draw)
    assert abs(out.mean() - mean) < 0.02 and abs(out.std() - std) < 0.05


def test_jumps_of_the_published_settings():
    walk = jumping(50, 5, 2, 0.8)
    assert (
        len(walk) == 60 and walk[:15] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5, 4] and walk[15:] == [*range(5, 50)]
    )
    assert jumping(25, 5, 2, 0.8) == list(range(25))  # no jump with 25 steps
    assert jumping(3, 5, 1, 0.0) == [0, 1, 2]


@pytest.fixture(scope="module")
def model(small_svd):
    return small_svd(seed=2, reverse=REVERSE)


def ends_of(model) -> Condition:
    g = torch.Generator().manual_seed(6)
    latent = torch.zeros(1, 5, 4, 4, 4)
    latent[:, [0, -1]] = torch.randn(1, 2, 4, 4, 4, generator=g)
    return Condition(latent, torch.ones(1, 5, dtype=torch.bool), torch.randn(1, 2, 16, generator=g))


def test_exchanging_the_ends_reverses_the_untrained_video(small_svd):
    """One network seen from both ends, averaged: swapping the keyframes and flipping the noise flips the video."""
    model = small_svd(seed=2, reverse={**REVERSE, "rotate": "none"})
    condition, noise = ends_of(model), torch.randn(1, 5, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    swapped = Condition(condition.latent.flip(1), condition.known, condition.tokens.flip(1))
    sampler = DualDirectional(2, recurrence=0, progress=False)
    a, b = sampler(model, condition, None, noise), sampler(model, swapped, None, noise.flip(1))
    torch.testing.assert_close(b.flip(1), a, rtol=0, atol=1e-4)


def test_sampling_is_seeded_by_clip_and_time_reversal_ignores_what_was_trained(model, small_svd):
    condition, noise = ends_of(model), torch.randn(1, 5, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    sampler = DualDirectional(2, recurrence=1, progress=False)
    made = lambda seed: sampler(model, condition, None, noise, draws(seed))
    assert torch.equal(made(1), made(1)) and not torch.equal(made(1), made(2))
    trf = TimeReversal(2, progress=False)
    taught = small_svd(seed=2, reverse=REVERSE)
    with torch.no_grad():
        for p in taught.backbone.reverse.values():
            p.mul_(3)
    assert torch.equal(trf(model, condition, None, noise), trf(taught, condition, None, noise))


@pytest.mark.parametrize("kind", [partial(DualDirectional, recurrence=0), TimeReversal])  # recurrence forgets it
def test_a_layout_leads_the_start(kind, model):
    """FrameInit before the first step: the same as starting from the noise it makes; nothing where nothing passes."""
    condition, noise = ends_of(model), torch.randn(1, 5, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    sample = lambda z, start=None: kind(2, progress=False, start=start)(model, condition, None, z, draws(1))
    with pytest.raises(ValueError, match="layout is None"):
        sample(noise, FrameInit(reference=SCHEDULE))
    condition.layout = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(5)).expand(1, 5, 4, 4, 4)
    start = FrameInit(500, cutoff=1.0, reference=SCHEDULE)
    led = sample(noise, start)
    assert torch.equal(led, sample(start(noise, condition.layout, model.process)))
    assert (led - sample(noise)).abs().max() > 1e-4
    assert torch.equal(sample(noise, FrameInit(cutoff=0.0, reference=SCHEDULE)), sample(noise))
    with pytest.raises(ValueError, match="image_to_video_frameinit"):
        sample(noise, FrameInit())


def test_wrong_inputs_are_one_clear_line(model, small_svd):
    with pytest.raises(ValueError, match="taught no backward motion"):
        DualDirectional(1, progress=False)(small_svd(), ends_of(model), None, torch.zeros(1, 5, 4, 4, 4))
    with pytest.raises(ValueError, match="average, linear, forward"):
        DualDirectional(weights="mean")
    with pytest.raises(ValueError, match="sampler.steps is 0"):
        DualDirectional(steps=0)
    for wrong in ([1.0], [1, 2, 3], None, ["a", "b"]):
        with pytest.raises(ValueError, match=r"sampler.guidance is .*'sampler.guidance=\[1.0,3.0\]'"):
            DualDirectional(guidance=wrong)
        with pytest.raises(ValueError, match="sampler.guidance is"):
            TimeReversal(guidance=wrong)
    with pytest.raises(ValueError, match="recurrence=-1"):
        DualDirectional(recurrence=-1)
    condition = ends_of(model)
    alone = Condition(condition.latent, condition.known, condition.tokens[:, :1])
    with pytest.raises(ValueError, match="give both ends"):
        DualDirectional(1, progress=False)(model, alone, None, torch.zeros(1, 5, 4, 4, 4))
    with pytest.raises(ValueError, match="pass draw"):
        DualDirectional(4, recurrence=1, progress=False)(model, condition, None, torch.zeros(1, 5, 4, 4, 4))
    with pytest.raises(ValueError, match="sampler=image_to_video"):
        Standard(ddim, 1, 1.0, progress=False)(model, condition, None, torch.zeros(1, 5, 4, 4, 4))
    model.process, kept = Process(), model.process
    with pytest.raises(ValueError, match="choose sampler=ddim"):
        TimeReversal(1, progress=False)(model, condition, None, torch.zeros(1, 5, 4, 4, 4))
    model.process = kept
