from __future__ import annotations

import math

import pytest
import torch

from timelapse.process import Process
from timelapse.randomness import keyed_each, randn
from timelapse.sampler.init import FrameInit, FreeInit, exchange, low_pass, mixed, progressive, still

PROCESS = Process(zero_terminal_snr=False, prediction="epsilon")
SHAPE = (16, 4, 32, 32)


def generators(count: int = 2, purpose: str = "noise"):
    return keyed_each([str(i) for i in range(count)], 0, purpose)


def noise(shape=SHAPE, count: int = 2, purpose: str = "noise"):
    return randn(shape, generators(count, purpose))


def correlation(a, b):
    return float((a * b).mean() / (a.std() * b.std()))


# -- noise laws ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 1.5])  # the public code's and the paper's
def test_mixed_noise_has_unit_variance_and_its_correlation(alpha):
    z = mixed(SHAPE, generators(40), alpha=alpha)  # 160 000 draws a frame: standard error 0.0025
    assert abs(z.var() - 1) < 0.01
    expected = alpha**2 / (1 + alpha**2)
    assert expected == pytest.approx({1.0: 0.5, 1.5: 0.692}[alpha], abs=1e-3)
    for i, j in [(0, 1), (0, 15), (7, 9)]:
        assert abs(correlation(z[:, i], z[:, j]) - expected) < 0.01


def test_progressive_noise_forgets_with_distance():
    z = progressive(SHAPE, generators(40), alpha=2.0)
    for frame in (0, 1, 15):
        assert abs(z[:, frame].var() - 1) < 0.015
    for k in (1, 2, 5):
        assert abs(correlation(z[:, 3], z[:, 3 + k]) - 0.8 ** (k / 2)) < 0.01


@pytest.mark.parametrize("law", [mixed, progressive])
def test_a_clips_noise_does_not_depend_on_its_neighbours(law):
    both = law(SHAPE, generators(2))
    assert torch.equal(both[1:], law(SHAPE, keyed_each(["1"], 0, "noise")))
    assert not torch.equal(both[0], both[1])
    independent = law(SHAPE, generators(2), alpha=0.0)
    assert abs(correlation(independent[:, 0], independent[:, 1])) < 0.05


# -- the filter ----------------------------------------------------------------------------------------------------


def test_gain_is_the_formula_at_its_stop_frequency_and_beyond():
    gain = low_pass((16, 32, 32))
    assert gain[0, 0, 0] == 1
    assert gain[2, 0, 0] == pytest.approx(0.6065, abs=1e-4)  # 2 / 8 = 0.25 of the highest frequency
    assert gain[0, 4, 0] == pytest.approx(0.6065, abs=1e-4)
    assert gain[2, 4, 0] == pytest.approx(0.6065**2, abs=1e-4)
    assert low_pass((16, 32, 32), time_cutoff=0.5)[4, 0, 0] == pytest.approx(0.6065, abs=1e-4)
    assert low_pass((16, 32, 32), "butterworth")[0, 4, 0] == pytest.approx(0.5)
    ideal = low_pass((16, 32, 32), "ideal")
    assert ideal[0, 4, 0] == 1 and ideal[0, 5, 0] == 0


@pytest.mark.parametrize("size", [(16, 32, 32), (13, 30, 45), (17, 16, 16), (1, 3, 3)])
@pytest.mark.parametrize("kind", ["gaussian", "butterworth", "ideal"])
def test_gain_is_one_at_rest_and_symmetric_for_odd_sizes_too(size, kind):
    gain = low_pass(size, kind)
    assert gain[0, 0, 0] == 1
    mirrored = gain.flip(0, 1, 2).roll((1, 1, 1), (0, 1, 2))  # frequency -f
    torch.testing.assert_close(gain, mirrored, rtol=0, atol=0)


def public_mask(size, cutoff, time_cutoff):
    """ConsistI2V's Gaussian mask, from its published formula: frequency 0 at index n / 2."""
    t, h, w = (2 * torch.arange(n, dtype=torch.float64) / n - 1 for n in size)
    squared = (cutoff / time_cutoff * t[:, None, None]) ** 2 + h[:, None] ** 2 + w**2
    return torch.exp(-squared / (2 * cutoff**2))


def public_mix(low, high, mask):
    axes = (1, 3, 4)
    shifted = lambda x: torch.fft.fftshift(torch.fft.fftn(x, dim=axes), dim=axes)
    mask = mask[:, None]
    both = torch.fft.ifftshift(shifted(low) * mask + shifted(high) * (1 - mask), dim=axes)
    return torch.fft.ifftn(both, dim=axes)


def test_even_sizes_equal_the_public_filter():
    mask = public_mask((16, 32, 32), 0.25, 0.5)
    ours = torch.fft.fftshift(low_pass((16, 32, 32), cutoff=0.25, time_cutoff=0.5))
    torch.testing.assert_close(ours, mask.float(), rtol=0, atol=1e-7)
    low, high = noise(purpose="low"), noise()
    theirs = public_mix(low, high, mask)
    assert theirs.imag.abs().max() < 1e-6
    torch.testing.assert_close(exchange(low, high, ours_gain()), theirs.real.float(), rtol=0, atol=1e-5)


def ours_gain():
    return low_pass((16, 32, 32), cutoff=0.25, time_cutoff=0.5)


def test_odd_sizes_deviate_from_the_public_filter_on_purpose():
    """Its centre misses frequency 0 for 13 frames: gain 0.954 there, and an imaginary part that is thrown away."""
    mask = public_mask((13, 32, 32), 0.25, 0.25)
    assert mask[6, 16, 16] == pytest.approx(0.954, abs=1e-3)
    still_clip = noise((1, 4, 32, 32)).expand(-1, 13, -1, -1, -1)
    level = still_clip.mean((1, 3, 4))
    kept = exchange(still_clip, torch.zeros_like(still_clip), low_pass((13, 32, 32)))
    torch.testing.assert_close(kept.mean((1, 3, 4)), level, rtol=0, atol=1e-6)
    lost = public_mix(still_clip, torch.zeros_like(still_clip), mask)
    assert (lost.real.mean((1, 3, 4)) - level * 0.954).abs().max() < 1e-4
    moving = noise((13, 4, 32, 32))
    assert public_mix(moving, torch.zeros_like(moving), mask).imag.abs().max() > 1e-3


def test_sizes_of_cogvideox_latents_too():
    low, high = noise((5, 16, 15, 16), purpose="low"), noise((5, 16, 15, 16))
    gain = low_pass((5, 15, 16))
    transform = lambda x: torch.fft.fftn(x, dim=(1, 3, 4))
    mixed_by_hand = torch.fft.ifftn(
        transform(low) * gain[:, None] + transform(high) * (1 - gain[:, None]), dim=(1, 3, 4)
    )
    assert mixed_by_hand.imag.abs().max() < 1e-6
    torch.testing.assert_close(exchange(low, high, gain), mixed_by_hand.real, rtol=0, atol=1e-5)


def test_wrong_filters_are_explained():
    with pytest.raises(ValueError, match="kind='gauss'.*gaussian, butterworth, ideal"):
        FrameInit(filter="gauss")
    with pytest.raises(ValueError, match="cutoff=-0.1"):
        FrameInit(cutoff=-0.1)
    for wrong in ({"cutoff": "x"}, {"time_cutoff": "x"}, {"cutoff": math.nan}, {"order": "x"}):
        with pytest.raises(ValueError, match="expected one of gaussian.* stop frequencies"):
            FrameInit(**wrong)
    for level in (850.5, "x", None):
        with pytest.raises(ValueError, match=f"level={level!r}; expected a whole number"):
            FrameInit(level=level)
    with pytest.raises(ValueError, match=r"level=1000.*0\.\.999"):
        FrameInit(level=1000)(noise(), noise(), PROCESS)


# -- FrameInit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [PROCESS, Process(schedule="linear", zero_terminal_snr=False)])
def test_frameinit_is_its_closed_form(process):
    """eps' = eps + G (alpha z0 - (1 - sigma) eps), with G applied in frequencies."""
    eps, layout = noise(), noise(purpose="layout")
    alpha_bar = float(process.alpha_bar[850])
    change = math.sqrt(alpha_bar) * layout - (1 - math.sqrt(1 - alpha_bar)) * eps
    filtered = exchange(change, torch.zeros_like(change), low_pass((16, 32, 32)))
    torch.testing.assert_close(FrameInit()(eps, layout, process), eps + filtered, rtol=0, atol=1e-5)


def test_frameinit_without_a_passband_is_the_noise_itself():
    assert torch.equal(FrameInit(cutoff=0.0)(noise(), noise(purpose="layout"), PROCESS), noise())


def test_guidance_grows_with_the_passband_and_falls_with_the_level():
    layout = noise((1, 4, 32, 32), purpose="layout").expand(-1, 16, -1, -1, -1)
    share = lambda **options: correlation(FrameInit(**options)(noise(), layout, PROCESS) - noise(), layout)
    moved = lambda **options: float((FrameInit(**options)(noise(), layout, PROCESS) - noise()).norm())
    assert moved(level=700, cutoff=0.5) > moved(level=700) > moved() > moved(level=999)
    assert share() > 0.1


def test_level_means_the_same_signal_to_noise_ratio_in_another_process():
    """CogVideoX has zero terminal SNR: index 850 holds less signal there than on Stable Diffusion's schedule."""
    cogvideox = Process()
    own, carried = FrameInit(), FrameInit(reference=PROCESS)
    eps, layout = noise((5, 16, 16, 16)), noise((5, 16, 16, 16), purpose="layout")
    assert torch.equal(carried(eps, layout, cogvideox), own(eps, layout, PROCESS))
    assert not torch.equal(own(eps, layout, cogvideox), own(eps, layout, PROCESS))


def test_freeinit_renews_the_high_frequencies_alone():
    refine = FreeInit(reference=PROCESS)
    assert refine.rounds == 3
    result, first, fresh = noise(purpose="result"), noise(), noise(purpose="fresh")
    again = refine.renew(result, first, fresh, Process())
    alpha_bar = float(PROCESS.alpha_bar[999])
    noised = math.sqrt(alpha_bar) * result + math.sqrt(1 - alpha_bar) * first
    gain = low_pass((16, 32, 32), "butterworth", order=4)
    torch.testing.assert_close(again, exchange(noised, fresh, gain), rtol=0, atol=1e-6)
    zero = torch.zeros_like(first)
    low = exchange(again, zero, (gain > 0.999).float())  # what lies well below the stop frequency
    torch.testing.assert_close(low, exchange(noised, zero, (gain > 0.999).float()), rtol=0, atol=2e-3)
    with pytest.raises(ValueError, match="rounds is 0"):
        FreeInit(rounds=0)


# -- the still video -----------------------------------------------------------------------------------------------


class ByFrame:
    temporal_compression, condition_scale = 1, 2.0


def test_a_still_repeats_the_nearest_known_frame():
    latent = torch.zeros(2, 6, 1, 1, 1)
    latent[0, 0], latent[1, 1], latent[1, 5] = 3.0, 4.0, 5.0
    known = torch.zeros(2, 6, dtype=torch.bool)
    known[0, 0] = known[1, 1] = known[1, 5] = True
    layout = still(torch.zeros(2, 6, 3, 8, 8), known, ByFrame(), latent * 2.0)
    assert layout[0].flatten().tolist() == [3.0] * 6
    assert layout[1].flatten().tolist() == [4.0, 4.0, 4.0, 4.0, 5.0, 5.0]


def test_a_still_is_encoded_whole_where_latents_compress_time(small_cogvideox):
    codec = small_cogvideox(seed=1).codec
    video = torch.rand(1, 17, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    known = torch.zeros(1, 17, dtype=torch.bool)
    known[0, 8] = True
    layout = still(video, known, codec, torch.zeros(1, 5, 4, 8, 8))
    torch.testing.assert_close(layout, codec.encode(video[:, 8:9].expand(-1, 17, -1, -1, -1)))


def test_a_still_of_svd_is_in_the_units_of_its_clips(small_svd):
    """Its network is told latents that are not scaled by the VAE's factor; the clip's latents are."""
    from timelapse.conditioning.end_frames import EndFrames

    codec = small_svd(seed=1).codec
    video = torch.rand(1, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    known = torch.zeros(1, 5, dtype=torch.bool)
    known[0, 0] = True
    batch = {"video": video, "key": ["a"]}
    told = EndFrames(noise_augmentation=0.0)(batch, codec, [torch.Generator()], known)
    expected = codec.encode(video[:, :1].expand(-1, 5, -1, -1, -1))
    torch.testing.assert_close(still(video, known, codec, told.latent), expected, rtol=0, atol=1e-6)
