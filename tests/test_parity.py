"""Our sampler against diffusers' own pipeline on the same weights, noise, first frame and prompts."""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, CogVideoXImageToVideoPipeline

from timelapse.conditioning.first_frame import FirstFrame
from timelapse.model.cogvideox_export import scheduler
from timelapse.randomness import randn
from timelapse.sampler.integrate import ddim, dpm, timesteps
from timelapse.sampler.standard import Standard

PROMPTS, NEGATIVE = ["rose opens", "ice melts"], "blurry"


@pytest.fixture(scope="module")
def model(small_cogvideox):
    return small_cogvideox(seed=5)


@pytest.fixture(scope="module")
def clips():
    g = torch.Generator().manual_seed(1)
    return torch.rand(2, 17, 3, 32, 32, generator=g) * 2 - 1, torch.randn(2, 5, 4, 8, 8, generator=g)


def theirs(model, kind, video, noise, steps, guidance, dynamic):
    pipeline = CogVideoXImageToVideoPipeline(
        tokenizer=model.text.tokenizer,
        text_encoder=model.text.encoder,
        vae=model.codec.vae,
        transformer=model.backbone.transformer,
        scheduler=kind.from_config(scheduler(model).config),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        image=(video[:, 0] + 1) / 2,
        prompt=PROMPTS,
        negative_prompt=[NEGATIVE] * 2,
        height=32,
        width=32,
        num_frames=17,
        num_inference_steps=steps,
        guidance_scale=guidance,
        use_dynamic_cfg=dynamic,
        generator=[torch.Generator().manual_seed(s) for s in (7, 8)],
        latents=noise.clone(),
        output_type="latent",
        max_sequence_length=12,
    ).frames


def ours(model, integrate, video, noise, steps, guidance, dynamic):
    generators = [torch.Generator().manual_seed(s) for s in (7, 8)]  # go on where the posterior sample ends
    condition = FirstFrame()({"key": ["a", "b"], "video": video}, model.codec, generators)
    condition.tokens = model.text.encode(PROMPTS)
    negative = model.text.encode([NEGATIVE] * 2)
    sampler = Standard(integrate, steps, guidance, dynamic, progress=False)
    return sampler(model, condition, negative, noise, lambda: randn(noise.shape[1:], generators))


def dpm_with_their_draws(denoise, noise, process, steps, draw, progress):
    """diffusers throws a draw away at each second-order step; drop the same ones."""
    times = iter(enumerate(timesteps(process, steps)))

    def their_draw():
        i, t = next(times)
        if i > 0 and t - process.steps // steps >= 0:
            draw()
        return draw()

    return dpm(denoise, noise, process, steps, their_draw, progress)


INTEGRATORS = {CogVideoXDDIMScheduler: ddim, CogVideoXDPMScheduler: dpm_with_their_draws}


@pytest.mark.parametrize("kind", INTEGRATORS, ids=["ddim", "dpm"])
@pytest.mark.parametrize(
    "steps, guidance, dynamic",
    [(1, 6.0, False), (5, 1.0, False), (7, 6.0, False), (8, 6.0, True)],  # 7 and 8: 1000 is no multiple of 7
    ids=["one step", "no guidance", "guidance", "dynamic"],
)
def test_same_latents_as_diffusers(model, clips, kind, steps, guidance, dynamic):
    video, noise = clips
    expected = theirs(model, kind, video, noise, steps, guidance, dynamic)
    got = ours(model, INTEGRATORS[kind], video, noise, steps, guidance, dynamic)
    assert expected.std() > 0.1  # not a constant that anything would match
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_same_video_as_diffusers(model, clips):
    video, noise = clips
    latent = ours(model, ddim, video, noise, 2, 6.0, False)
    pipeline = CogVideoXImageToVideoPipeline(
        tokenizer=model.text.tokenizer,
        text_encoder=model.text.encoder,
        vae=model.codec.vae,
        transformer=model.backbone.transformer,
        scheduler=scheduler(model),
    )
    expected = pipeline.decode_latents(latent).transpose(1, 2)
    torch.testing.assert_close(model.codec.decode(latent), expected, rtol=0, atol=1e-5)
