"""A decoder's lessons from what a diffusion model paints: in the VAE's own units, of whole clips, keyed, resumable."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import pytest
import torch

from timelapse.module.reconstruction import Reconstruction
from timelapse.module.redraw import Redraw

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import small_run  # noqa: E402

STAGE = {"steps": 9, "frames": 9, "batch": 3, "crop": 32, "rate": [1e-3, 1e-3], "noise": 0.1, "encoder": False}
CAPTIONS = ["a rose", "ice", "bread"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With latents in other units than the VAE's own, as the published one has them."""
    units = ["++model.vae.scaling_factor=0.7", "++model.vae.latents_std=[2,2,2,2,2,2,2,2,3,3,3,3,3,3,3,3]"]
    model = small_run(tmp_path_factory.mktemp("run"), *units, experiment="pretrain_vae").model
    for part in ("backbone", "codec", "text"):
        getattr(model, part)  # built here: tests name weights that are not there
    return model


def generators(n: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(n)]


def video(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 9, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def means(model, clips):
    with torch.no_grad():
        return model.codec.vae.encode(clips.transpose(1, 2)).latent_dist.mean


def test_with_hardly_any_noise_a_latent_comes_back_in_the_vaes_units(model):
    """At time 0, z0 = alpha zt - sigma v with sigma = 0.03: the rest is noise and what the network says."""
    clips = video()
    mean = means(model, clips)
    painted = Redraw(model, (0, 0), steps=1)(CAPTIONS, clips, mean, generators(), 0)
    sigma = float(1 - model.process.alpha_bar[0]) ** 0.5
    unit = model.codec.std.transpose(1, 2) / model.codec.scale  # of the backbone in the VAE's
    off = ((painted - mean) / unit).square().mean().sqrt()
    assert 0.8 * sigma < off < 1.6 * sigma  # in other units noise of the backbone's would be 0.35 or 3.4 times that
    far = Redraw(model, (900, 900), steps=2)(CAPTIONS, clips, mean, generators(), 900)
    assert ((far - mean) / unit).square().mean().sqrt() > 10 * off


def test_a_painting_is_of_its_clip_caption_guidance_and_generator_alone(model):
    clips = video()
    mean = means(model, clips)

    def paint(captions=CAPTIONS, clips=clips, mean=mean, draws=None, guidance=2.0):
        painter = Redraw(model, (300, 600), steps=2, guidance=guidance)
        return painter(captions, clips, mean, draws or generators(), 500)

    first = paint()
    assert torch.equal(first, paint())
    turned = paint(CAPTIONS[::-1], clips.flip(0), mean.flip(0), generators()[::-1])
    torch.testing.assert_close(turned.flip(0), first, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first, paint(draws=generators(6)[3:]), atol=1e-2)
    assert not torch.allclose(first, paint(captions=["a cup", "a hill", "rain"]), atol=1e-3)
    assert not torch.allclose(first, paint(clips=clips.flip(1)), atol=1e-3)  # of which it is told one frame
    assert not torch.allclose(first, paint(guidance=1.0), atol=1e-4)
    assert torch.equal(paint(guidance=0.0), paint(guidance=1.0))  # off, as in the sampler


def test_times_are_drawn_evenly_between_the_two(model):
    painter = Redraw(model, (300, 302))
    drawn = [painter.draw(torch.Generator().manual_seed(i)) for i in range(600)]
    assert all(abs(drawn.count(t) / 600 - 1 / 3) < 0.08 for t in (300, 301, 302))


def test_only_whole_clips_are_redrawn_and_only_their_share(model):
    module = Reconstruction(model, [STAGE], redraw={"times": [500, 500], "steps": 1})
    clips, known = video(), torch.ones(3, 9, dtype=torch.bool)
    known[1, 4] = False
    mean = means(model, clips)
    paint = module.painter({"redrawn": 1.0}, {"caption": CAPTIONS}, clips, known, generators())
    shown = paint(mean, mean)
    assert torch.equal(shown[1], mean[1])
    assert all((shown[b] - mean[b]).abs().mean() > 0.1 for b in (0, 2))
    for stage in ({}, {"redrawn": 0.0}):
        assert module.painter(stage, {"caption": CAPTIONS}, clips, known, generators()) is None
    drawn = [
        module.painter({"redrawn": 0.25}, {"caption": ["x"]}, clips[:1], known[:1], [torch.Generator().manual_seed(i)])
        for i in range(800)
    ]
    share = sum(paint is not None for paint in drawn) / len(drawn)
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 800) ** 0.5


def test_the_decoder_alone_learns_from_them_and_resumes_exactly(model, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "weights", dict.fromkeys(("vae", "transformer", "text"), "x"))
    start = {name: value.clone() for name, value in model.codec.vae.state_dict().items()}
    network = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    batch = {"video": video(), "key": ["a", "b", "c"], "draw": [0, 1, 2], "caption": CAPTIONS}

    def fitted(steps: int, share: float = 0.7, ckpt: Path | None = None, save: Path | None = None) -> dict:
        model.codec.vae.load_state_dict(start)
        stage = {**STAGE, "redrawn": share}
        module = Reconstruction(model, [stage], warmup=1, redraw={"times": [100, 700], "steps": 2})
        trainer = L.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader([batch] * 4, batch_size=None), ckpt_path=ckpt)
        if save:
            trainer.save_checkpoint(save)
        return {name: value.clone() for name, value in module.state_dict().items()}

    whole = fitted(3)
    fitted(1, save=tmp_path / "a.ckpt")
    resumed = fitted(3, ckpt=tmp_path / "a.ckpt")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[n], resumed[n]) for n in whole)
    plain, end = fitted(3, share=1e-9), "vae.decoder.conv_out.conv.weight"  # with the same coins and noise
    assert not torch.allclose(whole[end], plain[end], atol=1e-5)  # what was redrawn is what was decoded
    assert not any("transformer" in name for name in whole)  # a checkpoint holds what was trained
    moved = {n.split(".")[1] for n in whole if n.startswith("vae.") and not torch.equal(whole[n], start[n[4:]])}
    assert moved == {"decoder"}
    assert all(torch.equal(value, network[name]) for name, value in model.backbone.state_dict().items())
    model.codec.vae.load_state_dict(start)


def test_what_cannot_be_redrawn_is_explained(model, monkeypatch):
    told, stage = {"times": [1, 2]}, {**STAGE, "redrawn": 0.5}
    for wrong, redraw, said in (
        (stage, None, "set module.redraw, and encoder: false"),
        ({**stage, "encoder": True}, told, "set module.redraw, and encoder: false"),
        ({**stage, "crop": 16}, told, "module.stages: .* learned positions are for 9 x 32 x 32"),
        ({**stage, "frames": 1}, told, "module.stages: .* learned positions are for 9 x 32 x 32"),
        ({**stage, "redrawn": 50}, told, "redrawn=50; it is a share"),
        ({**STAGE, "redraw": 0.5}, told, r"unknown \['redraw'\], missing \[\]"),
    ):
        with pytest.raises(ValueError, match=said):
            Reconstruction(model, [wrong], redraw=redraw)
    for wrong in ({"times": [700, 100]}, {"times": [0, 1000]}, {"times": [0, 9], "steps": 0}):
        with pytest.raises(ValueError, match="module.redraw: times="):
            Redraw(model, **wrong)
    for part in ("vae", "transformer", "text"):
        weights = {**dict.fromkeys(("vae", "transformer", "text"), "x"), part: None}
        monkeypatch.setattr(model, "weights", weights)
        with pytest.raises(ValueError, match="name vae, transformer and text"):
            Redraw(model, (1, 2)).to(torch.device("cpu"))
