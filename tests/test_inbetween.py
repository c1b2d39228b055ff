"""Chains of keyframes, any number of frames between, and whole runs at the smallest size."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from timelapse import inbetween, sampling  # noqa: E402
from timelapse.build import frozen  # noqa: E402
from timelapse.dataset.write import read_video, write_video  # noqa: E402
from timelapse.inbetween import chain, fill  # noqa: E402
from timelapse.input import gaps_of  # noqa: E402
from timelapse.parts import Run  # noqa: E402
from timelapse.run import CONF  # noqa: E402
from timelapse.stages import evaluate, export, fit, restore, sample  # noqa: E402

SMALL = [
    "trainer=cpu",
    "model.weights=null",
    "model.unet.block_out_channels=[32,32]",
    "model.unet.num_attention_heads=[2,2]",
    "model.unet.num_frames=4",
    "model.vae.block_out_channels=[32,32]",
    "model.vae.down_block_types=[DownEncoderBlock2D,DownEncoderBlock2D]",
    "video={frames: 4, height: 8, width: 8}",
    "dataset.size=4",
    "train.validation_clips=2",
    "train.batch_size=2",
    "train.steps=2",
    "train.validate_every=2",
    "train.checkpoint_every=1",
    "sample.count=2",
    "sample.batch_size=2",
    "metric=[motion_direction,truth_psnr,fidelity_psnr]",
]


def small_run(folder: Path, *overrides: str, experiment: str = "svd_backward") -> Run:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        steps = [] if any("sampler=" in o for o in overrides) else ["sampler.steps=2", "sampler.recurrence=1"]
        small = [o for o in SMALL if o != "dataset.size=4" or "dataset=pairs" not in overrides]
        cfg = compose(
            "config", [f"+experiment={experiment}", *small, f"paths.cache={folder}/cache", *overrides, *steps]
        )
    run = Run(frozen(cfg), folder)
    run.freeze()
    return run


def straight(pairs: torch.Tensor, keys: list[str]) -> torch.Tensor:
    """A network that knows the truth: numbers grow evenly from one end to the other, in 5 frames."""
    t = torch.linspace(0, 1, 5).reshape(1, 5, 1, 1, 1)
    return (1 - t) * pairs[:, :1] + t * pairs[:, 1:]


@pytest.mark.parametrize("count, runs", [(0, 0), (1, 1), (3, 1), (7, 3), (15, 5), (2, 1), (20, 13), (70, 53)])
def test_any_number_of_frames_lies_evenly_between(count, runs):
    """Off by half a frame at most, exact where the clips' frames fall on the wanted ones, and by few runs."""
    first, last = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    asked = []

    def make(pairs, keys):
        asked.extend(keys)
        return straight(pairs, keys)

    frames = fill(first, last, count, make, "k")
    assert frames.shape == (count + 2, 3, 1, 1) and len(asked) == len(set(asked)) == runs
    wanted = torch.arange(count + 2) / (count + 1)
    off = (frames[:, 0, 0, 0] - wanted).abs()
    assert (off <= (1e-6 if count in (0, 1, 3, 7, 15) else 0.5 / (count + 1) + 1e-6)).all()
    assert (frames[1:] > frames[:-1]).all()


def test_a_chain_shows_each_keyframe_once_as_given_and_asks_once_a_gap():
    pictures = torch.tensor([0.0, 1.0, 0.0]).reshape(3, 1, 1, 1).expand(3, 3, 2, 2)
    asked = []

    def make(pairs, keys):
        asked.extend(keys)
        return straight(pairs, keys)

    video, places = chain(pictures, [3, 1], make, "key")
    assert places == [0, 4, 6] and len(video) == 7
    assert torch.equal(video[places], pictures) and asked == ["key/0", "key/1"]
    torch.testing.assert_close(video[:, 0, 0, 0], torch.tensor([0, 0.25, 0.5, 0.75, 1, 0.5, 0]))
    assert gaps_of(None, 2, 14) == [12, 12] and gaps_of(3, 2, 14) == [3, 3] and gaps_of([3, 1], 2, 14) == [3, 1]
    with pytest.raises(ValueError, match="each of the 2 gaps"):
        gaps_of([1, 2, 3], 2, 14)


def test_at_a_keyframe_stands_what_the_network_shows_of_it_no_seam_unless_the_picture_itself_is_asked_for():
    """A network that loses detail: each clip is darker than its pictures by 0.1, the second clip by 0.3."""
    pictures = torch.tensor([0.0, 1.0, 0.0]).reshape(3, 1, 1, 1).expand(3, 3, 2, 2)
    lossy = lambda pairs, keys: straight(pairs, keys) - (0.1 if keys[0].startswith("key/0") else 0.3)
    for between in ([3, 3], [7, 3]):
        video, places = chain(pictures, between, lossy, "key")
        torch.testing.assert_close(video[places][:, 0, 0, 0], torch.tensor([-0.1, 0.8, -0.3]))
        assert torch.equal(chain(pictures, between, lossy, "key", exact=True)[0][places], pictures)
    assert torch.equal(chain(pictures, [0, 0], lossy, "key")[0], pictures)


def test_backward_motion_trains_its_matrices_alone_and_samples_both_ends(tmp_path, caplog):
    caplog.set_level("INFO")
    run = small_run(tmp_path)
    before = {n: p.detach().clone() for n, p in run.model.backbone.named_parameters()}
    fit(run)
    assert caplog.text.count("attention maps stored at a time") == 1  # at the first step
    moved = {n for n, p in run.model.backbone.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if n.startswith("reverse.")} and len(moved) == 8
    state = torch.load(run.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    assert {k.split(".")[0] for k in state} == {"backbone", "ema"}
    assert all("reverse" in k for k in state)
    sample(run)
    evaluate(run)
    export(run)
    assert (tmp_path / "metrics.json").exists() and (tmp_path / "export" / "delta.safetensors").exists()

    again = small_run(tmp_path / "other", f"model.reverse.delta={tmp_path}", "model.seed=1", "stages=[sample]")
    delta = run.model.backbone.delta()
    with run.module.averaged():
        delta = run.model.backbone.delta()
    for name, d in again.model.backbone.delta().items():
        torch.testing.assert_close(d, delta[name], rtol=0, atol=1e-6)
    restore(again)
    assert f"using model.reverse.delta={tmp_path} on model.weights" in caplog.text
    assert "before finetuning" not in caplog.text


def test_loss_is_algorithm_one_with_the_clean_target(small_svd):
    """v of the reversed clip, alpha flip(eps) - sigma flip(z): the plain loss of a network that flips inside."""
    from timelapse.model.attention import Maps, Use
    from timelapse.types import Condition

    model = small_svd(seed=2, reverse={"train": ["to_v", "to_out.0"], "rotate": "all", "delta": None})
    g = torch.Generator().manual_seed(4)
    z, eps = torch.randn(2, 1, 5, 4, 4, 4, generator=g)
    latent = torch.zeros(1, 5, 4, 4, 4)
    latent[:, [0, -1]] = torch.randn(1, 2, 4, 4, 4, generator=g)
    condition = Condition(latent, torch.ones(1, 5, dtype=torch.bool), torch.randn(1, 2, 16, generator=g))
    t, process, backbone = torch.tensor([2.5]), model.process, model.backbone
    with torch.no_grad():
        output, _ = backbone(process.noise(z, eps, t), t, condition)
        ours = (output - process.target(z, eps, t)).square().mean()
        maps, layers = Maps(), backbone.rotated
        zt = process.noise(z, eps, t)
        with backbone.attention.use(Use(record=maps, layers=layers)):
            backbone.run(zt, t, latent[:, 0], condition.tokens[:, :1])
        with backbone.attention.use(Use(replay=maps, layers=layers, weights=backbone.weights())):
            said = backbone.run(zt.flip(1), t, latent[:, -1], condition.tokens[:, 1:])
        alpha, sigma = 1 / 7.25**0.5, 2.5 / 7.25**0.5
        algorithm = (said - (alpha * eps.flip(1) - sigma * z.flip(1))).square().mean()
        printed = (said - (alpha * eps.flip(1) - sigma * zt.flip(1))).square().mean()
    torch.testing.assert_close(ours, algorithm, rtol=1e-5, atol=1e-6)
    assert (printed - algorithm).abs() > 0.01


def picture(path: Path, seed: int, size: tuple[int, int]) -> str:
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (*size, 3), generator=g, dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save(path)
    return str(path)


def test_own_pictures_of_any_size_become_one_video(tmp_path, caplog):
    files = [picture(tmp_path / f"{n}.png", n, size) for n, size in enumerate([(9, 12), (20, 8), (8, 8)])]
    files[2] = files[1]
    with caplog.at_level("INFO"):
        run = small_run(
            tmp_path / "run", f"input.frames=[{','.join(files)}]", "input.between=[2,5]", "sampler=crossfade"
        )
        sample(run)
    assert "12x9 fitted to 8x8" in caplog.text and "the same picture as the one before it" in caplog.text
    assert run.out.parent == run.folder / "input" and run.out.name.startswith("0-1-1-")
    (video,) = (run.out / "samples").glob("*n00.mkv")
    assert len(read_video(video)) == 10
    evaluate(run)  # fidelity at the given places


def test_three_pictures_go_through_the_network_into_one_video_twice_the_same(tmp_path):
    files = [picture(tmp_path / f"{n}.jpg", n, (8, 8)) for n in range(3)]
    made = []
    for folder in ("a", "b"):
        run = small_run(
            tmp_path / folder, f"input.frames=[{','.join(files)}]", "input.between=[2,5]", "input.exact=true"
        )
        run.check()
        sample(run)
        (path,) = (run.out / "samples").glob("*n00.mkv")
        made.append(read_video(path))
    assert len(made[0]) == 3 + 2 + 5 and (made[0] == made[1]).all()
    places = [0, 3, 9]
    assert ((inbetween.load(files, 8, 8)[0] + 1) * 127.5 - made[0][places].float()).abs().max() <= 1
    assert all((made[0][k] != made[0][places]).flatten(1).any(1).all() for k in (1, 2, 4, 5, 6, 7, 8))


def test_pairs_of_footage_are_measured_on_and_never_trained_on(tmp_path):
    still = torch.linspace(-1, 1, 6).reshape(6, 1, 1, 1).expand(6, 3, 8, 8)
    write_video(tmp_path / "clip.mkv", still, lossless=True)
    (tmp_path / "pairs.jsonl").write_text('{"key": "clip-0", "file": "clip.mkv", "first": 0, "last": 5}\n')
    typed = [
        "dataset=pairs",
        f"dataset.list={tmp_path}/pairs.jsonl",
        f"dataset.root={tmp_path}",
        f"dataset.index={tmp_path}/index",
    ]
    with pytest.raises(ValueError, match=r"stages=\[sample,evaluate,report\] ckpt=RUN_DIR") as error:
        fit(small_run(tmp_path / "fit", *typed))
    assert "\n" not in str(error.value)
    run = small_run(tmp_path / "run", *typed, "stages=[sample,evaluate]")
    run.check()
    sample(run)
    evaluate(run)
    shown = read_video(tmp_path / "run" / "samples" / "clip-0.truth.mkv")
    assert shown.float().flatten(1).mean(1).tolist() == pytest.approx([0, 102, 153, 255], abs=1)
    assert (tmp_path / "run" / "metrics.json").exists()


def test_a_baseline_without_a_network_opens_no_model_and_fills_no_cache(tmp_path):
    run = small_run(tmp_path, "sampler=crossfade", "stages=[sample]")
    sample(run)
    assert len([*tmp_path.glob("samples/*.json")]) == 2
    assert not {"model", "module"} & {*vars(run)} and not (tmp_path / "cache").exists()


def test_clips_of_two_frames_have_nothing_to_put_between():
    ends = lambda pairs, keys: pairs
    with pytest.raises(ValueError, match="video.frames=3"):
        fill(torch.zeros(3, 4, 4), torch.ones(3, 4, 4), 3, ends, "a")


def one_of_two(rank: int, folder: Path, files: list[str]) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    written = []
    sampling.save_sample = lambda *a, save=sampling.save_sample, **k: written.append(a[1]) or save(*a, **k)
    inbetween.save_sample = sampling.save_sample
    typed = [f"input.frames=[{','.join(files)}]", "sampler=crossfade", "stages=[sample]", "input.count=3"]
    sample(small_run(folder, *typed))
    (folder / f"rank{rank}.txt").write_text(" ".join(written))
    os._exit(0)


def test_of_two_processes_one_writes(tmp_path):
    files = [picture(tmp_path / f"{n}.jpg", n, (8, 8)) for n in range(2)]
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=one_of_two, args=(rank, tmp_path, files)) for rank in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]
    assert len((tmp_path / "rank0.txt").read_text().split()) == 3 and not (tmp_path / "rank1.txt").read_text()
    (out,) = tmp_path.rglob("samples")
    assert len([*out.glob("between-*")]) == 3 * 5


def test_started_twice_without_a_fit_process_0_samples_alone(tmp_path, monkeypatch):
    files = [picture(tmp_path / f"{n}.jpg", n, (8, 8)) for n in range(2)]
    typed = [f"input.frames=[{','.join(files)}]", "sampler=crossfade", "stages=[sample]"]
    for rank, made in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        sample(small_run(tmp_path, *typed))
        assert len([*tmp_path.rglob("samples/*.json")]) == made


def test_wrong_pictures_are_one_clear_line(tmp_path):
    a = picture(tmp_path / "a.png", 1, (8, 8))
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    for frames, line in (
        (f"[{a}]", "give two or more"),
        (f"[{a},{tmp_path}/no.jpg]", "no.jpg is not there"),
        (f"[{a},{text}]", "text.jpg: not a readable photograph"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=line):
            sample(small_run(tmp_path / "run", f"input.frames={frames}"))
        with pytest.raises((ValueError, FileNotFoundError), match=line):  # before anything is cached or trained
            small_run(tmp_path / "run", f"input.frames={frames}").check()
    for override, line in (
        ("video.frames=3", "set video.frames=4"),
        ("video.height=10", "multiples of 4, e.g. 8 and 8"),
        ("input.between=-1", "0 or more"),
        ("input.camera=pan_left", "leave out input.camera"),
    ):
        with pytest.raises(ValueError, match=line):
            small_run(tmp_path / override.replace("=", ""), f"input.frames=[{a},{a}]", override).check()
    small_run(tmp_path / "flow", "video.frames=3", "sampler=flow").check()  # no network is run
    with pytest.raises(ValueError, match="set video.frames=4"):
        sample(small_run(tmp_path / "short", f"input.frames=[{a},{a}]", "video.frames=3"))
    with pytest.raises(ValueError, match="told the first frame or both ends"):
        sample(small_run(tmp_path / "middle", "sample.frames=[2]"))
    with pytest.raises(ValueError, match="give both ends"):
        sample(small_run(tmp_path / "one", "sample.frames=[0]"))
