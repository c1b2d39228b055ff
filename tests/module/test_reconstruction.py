"""Training of the VAE: the cheap path is exact, the posterior stays fixed, a frozen encoder stays frozen."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from omegaconf import OmegaConf

from timelapse import assets
from timelapse.module.reconstruction import Reconstruction, cut, drawn, fix_posterior, single_frame, standardise

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import clipped_step  # noqa: E402

STAGES = [
    {"steps": 10, "frames": 1, "batch": 2, "crop": 16, "rate": [1e-3, 1e-3], "noise": 0.02},
    {"steps": 10, "frames": 9, "batch": 2, "crop": 16, "rate": [1e-3, 1e-4], "noise": 0.05, "encoder": False},
]


@pytest.fixture
def module() -> Reconstruction:
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        sample_height=16,
        sample_width=16,
    )
    return Reconstruction(SimpleNamespace(codec=SimpleNamespace(vae=vae)), stages=STAGES, warmup=4)


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(n)]


def batch(frames: int = 17) -> dict:
    video = torch.rand(2, frames, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return {"video": video, "key": ["a", "b"], "draw": [0, 1]}


def test_one_frame_takes_a_2d_convolution_with_the_same_result(module):
    x = batch(1)["video"].transpose(1, 2)
    full = module.vae(x).sample
    with single_frame(module.vae):
        cheap = module.vae(x).sample
    assert torch.allclose(full, cheap, atol=1e-5)
    assert torch.equal(module.vae(x).sample, full)  # nothing is left behind


def test_posterior_has_the_last_stages_deviation_before_and_after_training(module):
    encoder = lambda: module.vae.encode(batch()["video"].transpose(1, 2)).latent_dist
    optimizer = module.configure_optimizers()["optimizer"]
    before = encoder()
    _, output = module.forward(batch()["video"], 0.02, True, generators(2))
    output.square().mean().backward()
    optimizer.param_groups[0]["lr"] = 1e-2
    optimizer.step()
    after = encoder()
    assert not torch.allclose(before.mean, after.mean, atol=1e-3)
    for posterior in (before, after):
        assert torch.allclose(posterior.std, torch.tensor(0.05), atol=1e-6)


def test_a_decoder_alone_goes_on_under_noise_and_the_latents_stay_what_they_were(module):
    """Its noise is what it learns to see through, not what a diffusion model was trained on."""
    fix_posterior(module.vae, 0.05)
    before = {k: v.clone() for k, v in module.vae.encoder.state_dict().items()}
    alone = [{**STAGES[1], "noise": 0.1}]
    Reconstruction(SimpleNamespace(codec=SimpleNamespace(vae=module.vae)), stages=alone, warmup=4)
    assert all(torch.equal(v, before[k]) for k, v in module.vae.encoder.state_dict().items())


def test_muon_turns_the_vaes_kernels_and_leaves_the_judge_to_adamw(module):
    one = adversarial(module)
    one.optimizer = "muon"
    both = one.configure_optimizers()
    optimizer, schedule = both["optimizer"], both["lr_scheduler"]["scheduler"]
    matrices = {p for group in optimizer.param_groups if group["matrix"] for p in group["params"]}
    assert module.vae.encoder.mid_block.resnets[0].conv1.conv.weight in matrices
    assert not matrices & {*one.judge.parameters()} and len(matrices) > 20
    one.optimizer = "adamw"
    for kind in (optimizer, one.configure_optimizers()["optimizer"]):
        assert {group["weight_decay"] for group in kind.param_groups} == {0.0}
    judge = next(iter(one.judge.parameters()))
    judge.grad = torch.randn_like(judge)  # its first step by Adam is its rate in size, whatever the gradient
    before = judge.detach().clone()
    optimizer.step()
    schedule.step()
    assert (judge - before).abs().mean().item() == pytest.approx(one.judge_rate, rel=1e-2)
    with pytest.raises(ValueError, match="did you mean muon"):
        Reconstruction(SimpleNamespace(codec=SimpleNamespace(vae=module.vae)), STAGES, optimizer="mouon")


def test_standardising_changes_the_latent_as_said_and_the_picture_not(module):
    mean, deviation = torch.tensor([0.3, -0.2, 0.1, 0.0]), torch.tensor([0.5, 2.0, 1.5, 0.7])
    vae, x = module.vae, torch.rand(1, 3, 9, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    before, picture = vae.encode(x).latent_dist, vae(x).sample
    standardise(vae, mean, deviation)
    after = vae.encode(x).latent_dist
    per_channel = lambda v: v.reshape(1, -1, 1, 1, 1)
    assert torch.allclose(after.mean, (before.mean - per_channel(mean)) / per_channel(deviation), atol=1e-5)
    assert torch.allclose(after.std, before.std / per_channel(deviation), atol=1e-6)
    standardise(vae, -mean / deviation, 1 / deviation)  # and back: also exact at the border
    assert torch.allclose(vae(x).sample, picture, atol=1e-4)
    standardise(vae, torch.zeros(4), deviation)  # without a shift, zero padding means the same
    assert torch.allclose(vae(x).sample, picture, atol=1e-4)
    fix_posterior(vae, 0.1)
    assert torch.allclose(vae.encode(x).latent_dist.std, torch.tensor(0.1), atol=1e-6)


def test_a_decoder_goes_on_from_weights_whose_latents_are_standardised(module):
    """Stages that never train the encoder measured no latents to standardise by: dividing by their zeros gave NaN."""
    module.stages = STAGES[1:]
    module._trainer = SimpleNamespace(
        global_step=0, accumulate_grad_batches=1, strategy=SimpleNamespace(reduce=lambda x, **_: x)
    )
    before = {name: p.clone() for name, p in module.vae.state_dict().items()}
    module.on_train_batch_start(batch(), 0)
    assert all(torch.equal(p, before[name]) for name, p in module.vae.state_dict().items())
    module.moments[:] = torch.tensor([[0.5], [1.25]])  # mean, mean square: deviation 1
    module.on_train_batch_start(batch(), 0)
    conv = module.vae.encoder.conv_out.conv
    assert torch.allclose(conv.bias[:4], before["encoder.conv_out.conv.bias"][:4] - 0.5)


def test_frozen_encoder_gets_no_gradient(module):
    _, output = module.forward(batch()["video"], 0.05, False, generators(2))
    output.square().mean().backward()
    assert all(p.grad is None for p in module.vae.encoder.parameters())
    assert any(p.grad.abs().sum() > 0 for p in module.vae.decoder.parameters())


def test_rate_warms_up_and_falls_as_a_cosine(module):
    assert module.rate(0) == pytest.approx(1e-3 / 4)
    assert module.rate(9) == pytest.approx(1e-3)
    assert module.rate(15) == pytest.approx((1e-3 + 1e-4) / 2)  # middle of the second stage
    assert module.rate(20) == pytest.approx(1e-4)


def test_cut_keeps_neighbours():
    t, y, x = torch.meshgrid(torch.arange(17), torch.arange(16), torch.arange(16), indexing="ij")
    clip = torch.stack([t, y, x], 1).float()[None]
    window = cut(clip, 9, 8, generators(1))[0]
    assert window.shape == (9, 3, 8, 8)
    assert (window[1:, 0] - window[:-1, 0] == 1).all()
    assert (window[:, 1, 1:] - window[:, 1, :-1] == 1).all() and (window[..., 1:] - window[..., :-1])[:, 2].eq(1).all()


def test_sparse_clips_are_real_frames_among_noise_of_the_given_variance(module):
    module.sparse_share = 1.0
    video = torch.full((8, 17, 3, 16, 16), 0.9)
    sparse, known = module.sparse(video, generators(8))
    torch.testing.assert_close((sparse == 0.9).flatten(2).all(2), known)
    assert set(known.sum(1).tolist()) <= {1, 2, 3}
    assert sparse[~known].var().item() == pytest.approx(0.07, rel=0.05)
    module.sparse_share = 0.0
    same, known = module.sparse(video, generators(8))
    assert known.all()
    torch.testing.assert_close(same, video)


def test_sparse_clips_are_judged_on_their_real_frames(module):
    video, known = torch.zeros(2, 5, 3, 8, 8), torch.ones(2, 5, dtype=torch.bool)
    known[1] = torch.tensor([False, True, False, False, False])
    output = video.clone()
    output[1, 1] = 0.5
    assert module.errors(output, video, known)["pixel"].item() == pytest.approx(0.25)  # 0.5 of one clip of two
    output[1] = 7.0
    output[1, 1] = 0.0
    assert module.errors(output, video, known) == {"pixel": 0, "gradient": 0}


def test_judged_frames_are_marked_and_each_comes_before_any_comes_twice():
    known = torch.tensor([False, True, False, True, True])
    some = drawn(known, 7, generators(1)[0]).tolist()
    assert sorted(some[:3]) == sorted(some[3:6]) == [1, 3, 4] and len(some) == 7


def test_lengths_that_the_chunks_do_not_allow_are_refused(module):
    with pytest.raises(ValueError, match="frames=5"):
        Reconstruction(SimpleNamespace(codec=SimpleNamespace(vae=module.vae)), stages=[{**STAGES[0], "frames": 5}])


def test_shipped_weights_open_as_the_same_network(module, tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    module.ship("the command", name="small")
    state, card = assets.load("small")
    vae = AutoencoderKLCogVideoX(**card["config"])
    vae.load_state_dict(state)
    x = batch(9)["video"].transpose(1, 2)
    assert card["recipe"] == "the command"
    assert torch.allclose(vae(x).sample, module.vae(x).sample, atol=5e-3)  # half precision on disk


def test_the_tiny_models_numbers_are_those_of_the_shipped_weights():
    vae = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[2] / "conf/model/cogvideox_tiny.yaml").vae)
    _, card = assets.load("cogvideox_tiny_vae")
    assert vae == {k: card["config"][k] for k in vae}


class Edges(torch.nn.Module):
    """In the place of EfficientNet: two maps of a picture."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.kernel = torch.nn.Parameter(torch.randn(6, 3, 3, 3, generator=g), requires_grad=False)

    def pyramid(self, frames, strides):
        return [torch.nn.functional.conv2d(frames, self.kernel, stride=s, padding=1).relu() + 0.1 for s in (1, 2)]


def adversarial(module, weight: float = 0.5) -> Reconstruction:
    stage = {**STAGES[1], "batch": 2, "perceptual": 0.3, "adversarial": weight}
    return Reconstruction(SimpleNamespace(codec=SimpleNamespace(vae=module.vae)), [stage], warmup=1, features=Edges())


def fitted(module: Reconstruction, steps: int, ckpt: Path | None = None, save: Path | None = None) -> dict:
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([batch()] * 4, batch_size=None), ckpt_path=ckpt, weights_only=True)
    if save:
        trainer.save_checkpoint(save)
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_an_adversarial_stage_moves_decoder_and_judge_and_resumes_exactly(module, tmp_path):
    start = {name: value.clone() for name, value in module.vae.state_dict().items()}
    begin = lambda: (module.vae.load_state_dict(start), adversarial(module))[1]
    first = begin()
    before = {name: value.clone() for name, value in first.state_dict().items()}
    whole = fitted(first, 3)
    moved = lambda part: [n for n in whole if n.startswith(part) and not torch.equal(whole[n], before[n])]
    assert moved("vae.decoder") and moved("judge.heads.0.0") and not moved("vae.encoder")
    fitted(begin(), 1, save=tmp_path / "a.ckpt")
    resumed = fitted(begin(), 3, ckpt=tmp_path / "a.ckpt")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[n], resumed[n]) for n in whole)
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert any(name.startswith("judge.") and name.endswith("._u") for name in state)


def test_the_verdict_weighs_in_the_vaes_loss_and_the_judges_own_loss_does_not(module):
    """To first order the VAE is led by its errors and, times the weight, by the judge's score of what it made."""
    gradients = []
    for weight in (0.5, 1.0, 1e-9):
        one = adversarial(module, weight)
        one._trainer, one.log = SimpleNamespace(global_step=0), lambda *_, **__: None
        module.vae.zero_grad()
        one.training_step(batch(), 0).backward()
        gradients.append(module.vae.decoder.conv_out.conv.weight.grad.clone())
        assert all(p.grad is not None for p in one.judge.parameters())
    half, full, none = gradients
    assert (full - none).norm() > 1e-3 * none.norm()
    torch.testing.assert_close(2 * (half - none), full - none, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_each_is_clipped_by_its_own_norm(module, kind):
    one = adversarial(module)
    one.optimizer, one._trainer = kind, SimpleNamespace(precision="32-true")
    optimizer = one.configure_optimizers()["optimizer"]
    parts = next(module.vae.parameters()), next(one.judge.parameters())
    for p, size in zip(parts, (10.0, 0.1)):
        p.grad = torch.full_like(p, size)
    norms = lambda: [p.grad.norm().item() for p in parts]
    small = norms()[1]
    one.configure_gradient_clipping(optimizer, max(1.0, small), "norm")
    assert norms() == pytest.approx([max(1.0, small), small], rel=1e-4)
    with pytest.raises(ValueError, match="weigh that too"):
        Reconstruction(SimpleNamespace(codec=SimpleNamespace(vae=module.vae)), [{**STAGES[1], "adversarial": 0.1}])


@pytest.mark.parametrize("frames", [1, 9])
def test_gradients_are_clipped_in_mixed_precision(module, frames):
    module.stages = [{**STAGES[0], "frames": frames}]
    assert clipped_step(module, batch(), 1e-3) == pytest.approx(1e-3, rel=1e-3)
