from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from timelapse.process import Process
from timelapse.randomness import keyed_each, randn
from timelapse.sampler.guide import denoiser, dynamic_scale, guide, guide_image
from timelapse.sampler.init import FrameInit, FreeInit
from timelapse.sampler.integrate import ddim, dpm
from timelapse.sampler.standard import Standard
from timelapse.types import Condition


@pytest.fixture(scope="module")
def model(small_cogvideox):
    return small_cogvideox(seed=2)


def condition(keys: str = "ab") -> Condition:
    g = torch.Generator().manual_seed(0)
    latent, tokens = torch.randn(2, 5, 4, 8, 8, generator=g), torch.randn(2, 12, 16, generator=g)
    rows = ["ab".index(k) for k in keys]
    return Condition(latent[rows], torch.zeros(len(rows), 17, dtype=torch.bool), tokens[rows])


def noise(keys: str = "ab") -> torch.Tensor:
    z = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    return z[["ab".index(k) for k in keys]]


def draws(keys: str = "ab", law=randn):
    return partial(law, (5, 4, 8, 8), keyed_each(list(keys), 0, "sampler"))


def test_guidance_is_affine_in_the_two_branches(model):
    c, zt = condition(), noise()
    negative = torch.zeros(2, 12, 16)
    with torch.no_grad():
        at = lambda s: guide(model, c, negative, lambda t: s)(zt, 500)
        positive_only = denoiser(model, c)(zt, 500)
        negative_only = denoiser(model, Condition(c.latent, c.known, negative))(zt, 500)
        torch.testing.assert_close(at(1.0), positive_only, rtol=0, atol=1e-5)
        torch.testing.assert_close(at(0.0), negative_only, rtol=0, atol=1e-5)
        expected = negative_only + 3 * (positive_only - negative_only)
        torch.testing.assert_close(at(3.0), expected, rtol=0, atol=1e-5)


def test_dynamic_scale_is_the_pipelines_formula():
    for t, steps in [(999, 50), (20, 50), (499, 7), (3, 8)]:
        expected = 1 + 6.0 * ((1 - math.cos(math.pi * ((steps - t) / steps) ** 5.0)) / 2)
        assert dynamic_scale(6.0, steps)(t) == expected


def test_a_clip_does_not_depend_on_its_neighbours(model):
    """Noise is keyed by clip: in another order, or alone, the same sample."""
    sampler = Standard(dpm, steps=4, guidance=3.0, progress=False)
    negative = torch.zeros(2, 12, 16)
    run = lambda keys: sampler(model, condition(keys), negative[: len(keys)], noise(keys), draws(keys))
    together, swapped, alone = run("ab"), run("ba"), run("b")
    torch.testing.assert_close(together, swapped.flip(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-5)


def test_no_negative_tokens_mean_the_empty_caption(model):
    sampler = Standard(ddim, steps=2, guidance=3.0, progress=False)
    empty = model.text.encode(["", ""])
    expected = sampler(model, condition(), empty, noise())
    assert torch.equal(sampler(model, condition(), None, noise()), expected)
    off = Standard(ddim, steps=2, guidance=1.0, progress=False)(model, condition(), empty, noise())
    assert not torch.equal(off, expected)


def test_another_backbone_takes_the_models_place(model, small_cogvideox):
    other = small_cogvideox(seed=3)
    sampler = Standard(ddim, steps=2, guidance=1.0, progress=False)
    expected = sampler(other, condition(), None, noise())
    assert torch.equal(sampler(model, condition(), None, noise(), backbone=other.backbone), expected)


def test_wrong_numbers_are_explained(model):
    with pytest.raises(ValueError, match="sampler.steps is 0"):
        Standard(ddim, steps=0)
    with pytest.raises(ValueError, match="sampler.steps is 2000"):
        Standard(ddim, steps=2000, guidance=1.0, progress=False)(model, condition(), None, noise())
    with pytest.raises(ValueError, match="sampler.guidance"):
        Standard(ddim, guidance=-1.0)
    with pytest.raises(ValueError, match="pass draw"):
        Standard(dpm, steps=2, guidance=1.0, progress=False)(model, condition(), None, noise())


def test_three_branches_are_the_public_formula(model):
    """none + s_img (image - none) + s_txt (both - image), each branch run by itself."""
    c, zt, negative = condition(), noise(), torch.zeros(2, 12, 16)
    blind = Condition(c.latent, torch.zeros_like(c.known), negative)
    with torch.no_grad():
        none, image, both = (denoiser(model, x)(zt, 500) for x in (blind, Condition(c.latent, c.known, negative), c))
        got = guide_image(model, c, negative, 2.0, 7.5)(zt, 500)
    torch.testing.assert_close(got, none + 2.0 * (image - none) + 7.5 * (both - image), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="null_frame is 'zero'"):
        Standard(ddim, null_frame="zero")
    with pytest.raises(ValueError, match="image_guidance"):
        Standard(ddim, steps=2, image_guidance=2.0, progress=False)(model, c, negative, noise())


def test_start_without_a_passband_changes_nothing(model):
    c = replace(condition(), layout=noise("ba"))
    sampler = lambda start: Standard(ddim, steps=3, guidance=1.0, progress=False, start=start)
    plain = sampler(None)(model, c, None, noise())
    assert torch.equal(sampler(FrameInit(cutoff=0.0))(model, c, None, noise()), plain)
    reference = Process(zero_terminal_snr=False)
    led = sampler(FrameInit(level=500, cutoff=0.5, reference=reference))(model, c, None, noise())
    assert not torch.equal(led, plain)
    with pytest.raises(ValueError, match="condition.layout is None"):
        sampler(FrameInit())(model, condition(), None, noise())


def test_freeinit_runs_the_sampler_again_on_renewed_noise(model):
    refine = FreeInit(rounds=2, reference=Process(zero_terminal_snr=False))
    run = lambda refine, z: Standard(ddim, steps=3, guidance=1.0, progress=False, refine=refine)(
        model, condition(), None, z, draws()
    )
    first = run(None, noise())
    expected = run(None, refine.renew(first, noise(), draws()(), model.process))
    torch.testing.assert_close(run(refine, noise()), expected, rtol=0, atol=1e-6)


def test_each_round_of_freeinit_has_its_own_start_noise_in_the_branch_that_knows_nothing():
    """Two rounds are one round twice, the second from the renewed noise; by a network that looks at frame 0."""
    network = lambda zt, t, c: (0.3 * zt + 0.5 * zt[:, :1] + c.known[:, :1, None, None, None], {})
    model = SimpleNamespace(keeps_known=True, process=Process(zero_terminal_snr=False), backbone=network)
    known = torch.zeros(2, 5, dtype=torch.bool)
    known[:, 0] = True
    c = replace(condition(), known=known)
    refine, fresh = FreeInit(rounds=2), noise("ba")
    options = {"progress": False, "image_guidance": 3.0, "null_frame": "start"}
    run = lambda z, refine=None: Standard(ddim, 2, 2.0, refine=refine, **options)(model, c, c.tokens, z, lambda: fresh)
    expected = run(refine.renew(run(noise()), noise(), fresh, model.process))
    torch.testing.assert_close(run(noise(), refine), expected, rtol=0, atol=1e-6)


def test_wrong_numbers_of_chunks_are_explained():
    for chunks in (0, -1, 1.5):
        with pytest.raises(ValueError, match="sampler.n_chunks is"):
            Standard(ddim, n_chunks=chunks)
