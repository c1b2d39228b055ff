from __future__ import annotations

import pytest
import torch

from timelapse.module.frame_vae import FrameVae, fix_posterior, standardise


def test_a_few_steps_bring_the_picture_back_and_draws_depend_on_the_clip_alone(small_svd):
    model = small_svd(seed=1)
    module = FrameVae(model, frames=2, crop=16, steps=30, learning_rate=3e-3, warmup=1)
    module.log = lambda *args, **kwargs: None  # outside of a trainer
    g = torch.Generator().manual_seed(2)
    clip = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 4, generator=g) * 2 - 1, (16, 16), mode="bilinear")
    batch = {"video": clip[None], "key": ["a"], "draw": [0]}
    assert torch.equal(module.training_step(batch, 0), module.training_step(batch, 0))
    start = (module(clip[None])[1] - clip).abs().mean()
    optimizer = module.configure_optimizers()["optimizer"]
    for _ in range(30):
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    assert (module(clip[None])[1] - clip).abs().mean() < 0.5 * start


def test_standardising_changes_latents_and_nothing_else(small_svd):
    vae = small_svd(seed=1).codec.vae
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    deviation = torch.tensor([0.5, 2.0, 1.0, 3.0])
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mean
        y = vae.decode(z, num_frames=2).sample
        standardise(vae, deviation)
        fix_posterior(vae, 0.03)
        posterior = vae.encode(x).latent_dist
        torch.testing.assert_close(posterior.mean, z / deviation.reshape(1, -1, 1, 1), rtol=0, atol=1e-5)
        torch.testing.assert_close(posterior.std, torch.full_like(z, 0.03))
        torch.testing.assert_close(vae.decode(posterior.mean, num_frames=2).sample, y, rtol=0, atol=1e-4)


def test_a_perceptual_weight_needs_a_network(small_svd):
    with pytest.raises(ValueError, match="module.features"):
        FrameVae(small_svd(seed=1), perceptual=0.1)
