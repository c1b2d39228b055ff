"""Training: the same numbers however it is cut into sessions, batches and processes."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import small_run  # noqa: E402

from timelapse.callback.checkpoint import newest  # noqa: E402
from timelapse.callback.history import read_rows  # noqa: E402
from timelapse.checkpoint import read  # noqa: E402
from timelapse.dataset.module import collate  # noqa: E402
from timelapse.stages import fit, restore  # noqa: E402


def losses(folder: Path) -> dict[int, dict[str, str]]:
    rows: dict[int, dict[str, str]] = {}
    for row in read_rows(folder / "metrics.csv"):
        rows.setdefault(int(row["step"]), {}).update(row)
    return rows


def test_stopped_and_continued_is_never_stopped(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(small_run(whole, "train.steps=6", "train.cooldown=0"))
    fit(small_run(cut, "train.steps=4", "train.cooldown=0"))  # a falling rate would know of the length
    (cut / "config.yaml").unlink()  # the length of training is not part of what a run is, but of its folder's name
    fit(small_run(cut, "train.steps=6", "train.cooldown=0"))
    assert losses(cut) == losses(whole) and len(losses(whole)) >= 6
    a, b = (read(newest(f / "checkpoints"))["state_dict"] for f in (whole, cut))
    assert all(torch.equal(a[k], b[k]) for k in a) and any(k.startswith("ema.") for k in a)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = small_run(tmp_path_factory.mktemp("run"), "train.steps=4")
    fit(run)
    return run


def batch_of(run, indices: list[int]) -> dict:
    return collate([{**run.train_clips[i], "draw": i} for i in indices])


def test_a_clip_sees_the_same_noise_in_any_batch(trained):
    module = trained.module.eval()
    t = torch.tensor([300, 700])
    made = lambda indices, t, names: module.step(*module.prepare(batch_of(trained, indices), names), t, names)
    both, alone = made([1, 2], t, ["1:a", "2:b"]), made([2], t[1:], ["2:b"])
    assert torch.equal(both.noise[1:], alone.noise)
    assert torch.equal(both.condition.known[1:], alone.condition.known)
    torch.testing.assert_close(both.zt[1:], alone.zt, atol=1e-5, rtol=0)
    torch.testing.assert_close(both.output[1:], alone.output, atol=1e-4, rtol=0)


def test_noises_of_one_clip_share_its_encodes_and_nothing_else(trained, monkeypatch):
    module, steps, encoded = trained.module, [], []
    step, encode = module.step, module.model.codec.encode
    monkeypatch.setattr(module, "noises_per_clip", 3)
    monkeypatch.setattr(module, "step", lambda *a: steps.append(step(*a)) or steps[-1])
    monkeypatch.setattr(module.model.codec, "encode", lambda v, g=None: encoded.append(len(v)) or encode(v, g))
    loss = module.training_step(batch_of(trained, [1, 2]), 0)
    made = steps[0]
    assert made.z0.shape[0] == 6 and max(encoded, default=0) <= 2
    for first in (0, 3):  # three in a row are of one clip
        for other in (first + 1, first + 2):
            assert torch.equal(made.z0[other], made.z0[first])
            assert torch.equal(made.condition.latent[other], made.condition.latent[first])
            assert made.t[other] != made.t[first] and not torch.equal(made.noise[other], made.noise[first])
            assert made.batch["key"][other] == made.batch["key"][first]
    assert made.batch["key"][0] != made.batch["key"][3]
    torch.testing.assert_close(loss, trained.losses["denoise"](made).mean() * trained.losses["denoise"].weight)


def test_the_average_follows_its_formula_and_swapping_is_exact(trained):
    module = trained.module
    name, p = next(module.trained())
    average = module.ema[name.replace(".", "/")]
    kept, ema = p.detach().clone(), average.detach().clone()
    assert not torch.equal(kept, ema)
    with module.averaged():
        assert torch.equal(p, ema) and torch.equal(average, kept)
    assert torch.equal(p, kept) and torch.equal(average, ema)
    module.ema_decay, old = 0.9, module.ema_decay
    try:
        expected = ema + (p.detach() - ema) * (1 - min(0.9, (1 + module.global_step) / (10 + module.global_step)))
        module.update_average()
        torch.testing.assert_close(average.data, expected)
    finally:
        average.data.copy_(ema)
        module.ema_decay = old


def test_held_out_loss_never_changes_its_noise(trained):
    module, batch = trained.module.eval(), batch_of(trained, [0, 1])
    t = torch.full((2,), 400)
    names = batch["key"]
    first, second = (module.step(*module.prepare(batch, names), t, names) for _ in range(2))
    assert torch.equal(first.zt, second.zt) and torch.equal(first.output, second.output)


def test_a_loss_that_is_not_a_number_names_step_and_clips(tmp_path):
    run = small_run(tmp_path, "train.steps=2", "train.learning_rate=1e30", "train.warmup=0", "train.clip_norm=0")
    with pytest.raises(ValueError, match=r"loss is no number: .* (nan|inf) at step \d+, clips synthetic-.*last good"):
        fit(run)


@pytest.mark.parametrize(
    ("steps", "there", "then"),
    [(4, "12", "once the checkpoint of this step is deleted"), (2, "1", "clips, the same command")],
)
def test_a_held_out_loss_that_is_not_a_number_ends_the_training(tmp_path, steps, there, then):
    """What it says to do fits the checkpoints that it leaves: the last step's is kept only where it is good."""
    run = small_run(tmp_path, f"train.steps={steps}", "train.validate_every=2", "train.checkpoint_every=1")
    whole = run.module.prepare

    def broken(batch, names):  # of validation clips, once something was trained
        batch, condition = whole(batch, names)
        if not run.module.training and run.module.global_step:
            batch["latent"] = batch["latent"] * float("nan")
        return batch, condition

    run.module.prepare = broken
    with pytest.raises(ValueError, match=rf"held-out val/denoise\S* is no number at step 2: .*{then}"):
        fit(run)
    assert [path.name for path in sorted(tmp_path.glob("checkpoints/*.ckpt"))] == [f"step00000{n}.ckpt" for n in there]


def test_the_projector_never_reaches_the_sample(tmp_path):
    overrides = ("encoder=dinov3_tiny", "train.steps=2", "sample.weights=raw")
    run = small_run(tmp_path, *overrides, experiment="drepa_dinov3")
    fit(run)
    with_projector = sampled(run)
    plain = small_run(tmp_path / "plain", f"ckpt={tmp_path}", "stages=[sample]")
    state = torch.load(plain.checkpoint, weights_only=True)["state_dict"]
    assert any(k.startswith("losses.drepa") for k in state)
    restore(plain)
    assert torch.equal(sampled(plain), with_projector)


def sampled(run) -> torch.Tensor:
    from timelapse.build import build
    from timelapse.input import given

    batch = collate([run.validation_clips[0]])
    known = given(4, 9)[None]
    return run.module.eval().sample(batch, known, build(run.cfg.sampler), weights="raw")


def test_noise_added_on_the_way_has_the_law_of_the_start(tmp_path):
    """Frames share alpha^2 / (1 + alpha^2) of mixed noise, at the start and on the way."""
    run = small_run(tmp_path, "noise=mixed", "train.steps=1", "cache.enabled=false")
    run.module.materialise()
    seen, told = [], []

    def sampler(model, condition, negative, noise, draw, **_):
        seen.extend([noise, draw(), draw()])
        told.append(condition)
        return noise

    batch = collate([run.validation_clips[i] for i in (0, 1)])
    batch = {k: [*v] * 20 if isinstance(v, list) else v.repeat(20, *[1] * (v.ndim - 1)) for k, v in batch.items()}
    batch["key"] = [f"{i}" for i in range(40)]
    batch["seconds"] = torch.arange(9.0, dtype=torch.float64).expand(40, 9)  # MPS has no float64
    known = torch.zeros(40, 9, dtype=torch.bool)
    known[:, 4] = True
    run.module.sample(batch, known, sampler)
    assert told[0].seconds_per_frame.dtype == torch.float32
    assert not torch.equal(seen[1], seen[2])
    for noise in seen:
        frames = noise.transpose(0, 1).flatten(1)
        expected = torch.full((5, 5), 1.5**2 / (1 + 1.5**2)).fill_diagonal_(1.0)
        torch.testing.assert_close(torch.corrcoef(frames), expected, rtol=0, atol=0.03)


def test_samples_are_made_in_the_trainers_precision_and_decoded_as_they_were(trained):
    seen, module = [], trained.module.eval()

    def sampler(model, condition, negative, noise, draw, backbone, **_):
        seen.append(backbone(noise, torch.full((1,), 500), condition)[0])
        return noise

    batch, known = collate([trained.validation_clips[0]]), (torch.arange(9) == 4)[None]
    names = ("32-true", "bf16-mixed", 16)  # Hydra makes a number of trainer.precision=16
    plain, mixed, _ = (module.sample(batch, known, sampler, precision=p) for p in names)
    assert [x.dtype for x in seen] == [torch.float32, torch.bfloat16, torch.float16]
    torch.testing.assert_close(seen[1].float(), seen[0], rtol=0.1, atol=0.1)
    assert torch.equal(plain, mixed)


def test_the_negative_prompt_is_encoded_once(trained, monkeypatch):
    module, asked = trained.module.eval(), []
    encode = module.model.text.encode
    monkeypatch.setattr(module.model.text, "encode", lambda captions: asked.append(captions) or encode(captions))
    module.constants.clear()
    sampler = lambda model, condition, negative, noise, draw, **_: negatives.append(negative) or noise
    batch, known, negatives = collate([trained.validation_clips[0]]), (torch.arange(9) == 4)[None], []
    for prompt in ("blurry", "blurry", ""):
        module.sample(batch, known, sampler, negative_prompt=prompt)
    assert asked == [["blurry"], [""]]  # the clips' own captions are cached
    module.constants.clear()
    with torch.autocast("cpu", torch.bfloat16):  # as in a training step
        made = module.constant("")
    assert torch.equal(made, encode([""]))
    assert torch.equal(negatives[0], negatives[1]) and torch.equal(negatives[0], encode(["blurry"]))


def test_lora_checkpoints_hold_only_what_was_trained(tmp_path):
    lora = "model.lora={rank: 2, alpha: 2, targets: [to_q, to_v]}"
    fit(small_run(tmp_path, lora, "train.steps=2"))
    state = read(newest(tmp_path / "checkpoints"))["state_dict"]
    assert state and all("lora" in k for k in state)


def test_what_is_trained_stays_in_32_bits_beside_a_frozen_codec_of_16(tmp_path):
    run = small_run(tmp_path, "module.train_text=true", "model.frozen_dtype=bfloat16", "train.steps=1")
    fit(run)  # weights of 16 bits would be refused
    assert {p.dtype for p in run.module.text.parameters()} == {torch.float32}
    assert {p.dtype for p in run.model.codec.vae.parameters()} == {torch.bfloat16}


def test_learning_rate_warms_up_holds_and_cools_down(trained):
    module = trained.module
    module.warmup, module.steps, module.cooldown = 4, 100, 0.25
    assert [module.rate(s) for s in (0, 3, 50, 75)] == [0.25, 1.0, 1.0, 1.0]
    assert module.rate(90) == pytest.approx(0.4) and module.rate(100) == 0.0
