from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from timelapse.module.image_vae import ImageVae, standardise

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import clipped_step  # noqa: E402


def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=[8, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=3,
        layers_per_block=1,
        norm_num_groups=2,
    ).eval()


class Model:
    class codec:
        vae = vae()


@torch.no_grad()
def test_standardised_latents_decode_to_the_same_pictures():
    plain, folded = vae(), vae()
    x = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, deviation = torch.tensor([0.5, -2.0, 0.1]), torch.tensor([0.2, 3.0, 1.5])
    standardise(folded, mean, deviation**2 + mean**2, 0.05)
    old, new = plain.encode(x).latent_dist, folded.encode(x).latent_dist
    shape = (1, 3, 1, 1)
    torch.testing.assert_close(new.mean, (old.mean - mean.view(shape)) / deviation.view(shape), rtol=0, atol=1e-5)
    torch.testing.assert_close(new.std, (0.05 / deviation.view(shape)).expand_as(new.std), rtol=1e-5, atol=0)
    torch.testing.assert_close(folded.decode(new.mean).sample, plain.decode(old.mean).sample, rtol=0, atol=1e-5)


def test_windows_of_svd_come_back_and_draws_depend_on_the_clip_alone(small_svd):
    module = ImageVae(small_svd(seed=1), name="x", frames=2, crop=16, steps=40, rate=(3e-3, 0.0), warmup=1, noise=0.03)
    module.log = lambda *args, **kwargs: None  # outside of a trainer
    g = torch.Generator().manual_seed(2)
    clip = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 4, generator=g) * 2 - 1, (16, 16), mode="bilinear")
    batch = {"video": clip[None], "key": ["a"], "draw": [0]}
    assert torch.equal(module.training_step(batch, 0), module.training_step(batch, 0))
    start = (module(clip[None])[1] - clip).abs().mean()
    both = module.configure_optimizers()
    for _ in range(30):
        both["optimizer"].zero_grad()
        module.training_step(batch, 0).backward()
        both["optimizer"].step()
        both["lr_scheduler"]["scheduler"].step()
    assert (module(clip[None])[1] - clip).abs().mean() < 0.5 * start


@torch.no_grad()
def test_standardising_svd_changes_latents_and_nothing_else(small_svd):
    vae = small_svd(seed=1).codec.vae
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    deviation = torch.tensor([0.5, 2.0, 1.0, 3.0])
    z = vae.encode(x).latent_dist.mean
    y = vae.decode(z, num_frames=2).sample
    standardise(vae, torch.ones(4), deviation**2, 0.03)
    posterior, shape = vae.encode(x).latent_dist, (1, 4, 1, 1)
    torch.testing.assert_close(posterior.mean, z / deviation.view(shape), rtol=0, atol=1e-5)
    torch.testing.assert_close(posterior.std, (0.03 / deviation.view(shape)).expand_as(z))
    torch.testing.assert_close(vae.decode(posterior.mean, num_frames=2).sample, y, rtol=0, atol=1e-4)


def test_the_rate_warms_up_and_falls_to_its_last():
    module = ImageVae(Model, name="x", crop=8, steps=100, warmup=10, rate=(1e-2, 1e-4))
    assert module.rate(0) == pytest.approx(1e-3, rel=0.01) and module.rate(100) == pytest.approx(1e-4)
    assert module.rate(50) == pytest.approx((1e-2 + 1e-4) / 2)


def test_it_learns_a_picture():
    module = ImageVae(Model, name="x", crop=8, steps=30, warmup=1, frames=2, noise=0.01)
    module.log = lambda *args, **kwargs: None
    clip = torch.linspace(-1, 1, 8).expand(1, 3, 3, 8, 8).contiguous()
    optimizer = torch.optim.Adam(module.vae.parameters(), 5e-3)
    losses = []
    for step in range(30):
        loss = module.training_step({"video": clip, "key": ["a"], "draw": [step]}, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert module.moments[1].min() > 0


def test_the_recipe_builds_with_its_own_numbers(tmp_path):
    """Nothing that a run has to hand (models, losses, a noise law) takes the place of a number of the module."""
    from hydra import compose, initialize_config_dir

    from timelapse.build import frozen
    from timelapse.parts import Run
    from timelapse.run import CONF

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["+experiment=pretrain_picture_vae", "module.features=null"])
    module = Run(frozen(cfg), tmp_path).module
    assert module.noise == 0.05 and module.vae.config.latent_channels == 16


def test_gradients_are_clipped_in_mixed_precision():
    module = ImageVae(Model, name="x", crop=8, steps=30, frames=2)
    batch = {"video": torch.rand(1, 3, 3, 8, 8) * 2 - 1, "key": ["a"], "draw": [0]}
    assert clipped_step(module, batch, 1e-3) == pytest.approx(1e-3, rel=1e-3)


def test_an_optimizer_that_does_not_exist_is_refused_at_once():
    with pytest.raises(ValueError, match="did you mean muon"):
        ImageVae(Model, name="x", steps=1, optimizer="mouon")
