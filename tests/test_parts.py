"""What a run refuses before it loads, encodes or trains anything."""

from __future__ import annotations

import html
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from small import trained  # noqa: E402

from timelapse.build import frozen  # noqa: E402
from timelapse.module.denoising import Denoising  # noqa: E402
from timelapse.parts import Run  # noqa: E402
from timelapse.run import CONF  # noqa: E402


class AnotherDenoiser(Denoising):
    """A user's own module."""


def check(folder: Path, *overrides: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["trainer=cpu", "model.weights=null", f"paths.cache={folder}/cache", *overrides])
    Run(frozen(cfg), folder / "run").check()
    assert not any(folder.iterdir())  # nothing was begun


@pytest.mark.parametrize("stage", ["cache", "fit", "sample"])
@pytest.mark.parametrize("module", [Denoising, AnotherDenoiser])
def test_a_size_that_the_model_cannot_take_is_refused_whatever_the_module_is_called(tmp_path, module, stage):
    target = f"module._target_={module.__module__}.{module.__name__}"
    chosen = ["+experiment=svd_backward", f"stages=[{stage}]", target]
    with pytest.raises(ValueError, match="video.height"):
        check(tmp_path, *chosen, "video.height=60")
    check(tmp_path, *chosen)


def test_modules_that_run_the_model_on_no_whole_clip_choose_their_own_sizes(tmp_path):
    for experiment in ("pretrain_svd_vae", "pretrain_videomae"):
        check(tmp_path, f"+experiment={experiment}", "video.frames=6")  # an SVD needs 14


@pytest.fixture
def pictures(tmp_path_factory) -> list[Path]:
    files = [tmp_path_factory.mktemp("pictures") / name for name in ("a.jpg", "b.jpg")]
    for file in files:
        Image.new("RGB", (64, 64)).save(file)
    return files


BOTH = "svd_backward"


def test_two_pictures_for_a_model_that_is_told_one_are_refused_in_one_line(tmp_path, pictures):
    a, b = pictures
    typed = ["stages=[sample]", f"input.frames=[{a},{b}]"]
    with pytest.raises(ValueError) as error:
        check(tmp_path, "+experiment=consisti2v", *typed)
    said = str(error.value)
    assert "\n" not in said and "frames [0, -1] of 17 would be known" in said  # what was wrong
    assert "model ConsistI2V can be told [0] only" in said  # what was expected
    assert said.endswith(f"type input.image={a} input.frame=0, or +experiment={BOTH}, whose clips have both ends known")
    check(tmp_path, "+experiment=consisti2v", "stages=[sample]", f"input.image={a}", "input.frame=0")
    check(tmp_path, f"+experiment={BOTH}", *typed)
    check(tmp_path, "+experiment=finetune_only", *typed)  # any frames
    with pytest.raises(ValueError, match=r"DualDirectional can be told \[0\] only; .*, or sampler=dual_directional"):
        check(tmp_path, f"+experiment={BOTH}", "sampler=image_to_video", *typed)  # would paste the second


@pytest.mark.parametrize("beside", ["input.image={a}", "input.camera=pan_left"])
def test_pictures_to_go_through_and_one_to_start_from_are_refused_together(tmp_path, pictures, beside):
    a, b = pictures
    with pytest.raises(ValueError, match=f"leave out {beside.partition('=')[0]}"):
        check(tmp_path, "+experiment=consisti2v", "stages=[sample]", f"input.frames=[{a},{b}]", beside.format(a=a))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["+experiment=consisti2v", "sample.frames=[0,8]"], r"model .* told \[0\] only; type 'sample.frames=\[0\]'"),
        (
            [f"+experiment={BOTH}", "sampler=image_to_video", "sample.frames=[2]"],
            r"sampler DualDirectional can be told \[0\] only; type 'sample.frames=\[0\]'",
        ),
        ([f"+experiment={BOTH}", "sample.frames=[0]"], r"DualDirectional .* type 'sample.frames=\[\[0,-1\]\]'"),
        (["+experiment=inbetween", "sample.frames=[[0,5]]"], r"sampler TimeReversal"),
        (["+experiment=inbetween", "sampler=flow", "sample.frames=[0]"], r"sampler Flow"),
        (["+experiment=finetune_only", "sample.frames=[17]"], r"outside the clip of 17 frames"),
        (
            ["+experiment=consisti2v", "stages=[fit]", "train.sample_every=9", "sample.frames=[3]"],
            r"frames \[3\] of 17 would be known",
        ),
    ],
)
def test_known_frames_that_a_part_cannot_be_told_are_refused_before_anything_is_loaded(tmp_path, typed, said):
    with pytest.raises(ValueError, match=said):
        check(tmp_path, *typed)


def test_frames_that_nothing_samples_are_not_looked_at(tmp_path):
    check(tmp_path, "+experiment=consisti2v", "stages=[fit]", "sample.frames=[3]")
    check(tmp_path, f"+experiment={BOTH}", "sampler=image_to_video", "sample.frames=[0]")  # forward motion alone


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["trainer=fsdp", "module.optimizer=muon"], "type trainer=ddp or module.optimizer=adamw"),
        (["module.optimizer=mouon"], "did you mean muon"),
    ],
)
def test_an_optimizer_that_cannot_work_is_refused_before_clips_are_encoded(tmp_path, typed, said):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = ["+experiment=finetune_only", "model.weights=null", f"paths.cache={tmp_path}/cache", *typed]
        run = Run(frozen(compose("config", [*composed, "trainer.accelerator=cpu"])), tmp_path / "run")
    with pytest.raises(ValueError, match=said):
        run.check()
        assert run.train_clips
    assert not (tmp_path / "cache").exists()


def test_a_checkpoint_is_not_trained_on_and_then_shown_in_the_place_of_what_was_trained(tmp_path):
    with pytest.raises(ValueError, match=r"type 'stages=\[sample,evaluate,report\]'") as error:
        check(tmp_path, "+experiment=finetune_only", "ckpt=elsewhere")  # the default stages begin with fit
    assert "\n" not in str(error.value)


def test_a_run_is_not_continued_on_numbers_of_another_precision(tmp_path):
    from small import small_run

    small_run(tmp_path)
    with pytest.raises(ValueError, match="holds a run with another cache") as error:
        small_run(tmp_path, "cache.pixels=false")
    assert "\n" not in str(error.value)
    small_run(tmp_path, f"paths.cache={tmp_path}/elsewhere", "train.keep=5")


def test_a_module_that_shards_nothing_is_refused_under_a_trainer_that_does(tmp_path):
    typed = ["+experiment=pretrain_vae", "trainer=fsdp", "trainer.accelerator=cpu"]
    with pytest.raises(ValueError, match="Reconstruction holds its network whole .* type trainer=ddp") as error:
        check(tmp_path, *typed)
    assert "\n" not in str(error.value)
    check(tmp_path, "+experiment=finetune_only", *typed[1:])


def test_what_would_fail_in_the_middle_of_a_distributed_training_is_refused_before(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="Reconstruction .* trainer.strategy=ddp_find_unused_parameters_true"):
        check(tmp_path, "+experiment=pretrain_vae", "trainer=ddp", "trainer.accelerator=cpu")
    with pytest.raises(ValueError, match="Reconstruction .* trainer.strategy=ddp_find_unused_parameters_true"):
        check(tmp_path, "+experiment=pretrain_vae", "trainer.devices=2")  # Lightning's auto is DDP then
    with pytest.raises(ValueError, match="train_text=true: .* type trainer=ddp"):
        check(
            tmp_path, "+experiment=finetune_only", "trainer=fsdp", "trainer.accelerator=cpu", "module.train_text=true"
        )
    check(tmp_path, "+experiment=pretrain_picture_vae", "trainer=ddp", "trainer.accelerator=cpu")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    check(tmp_path, "+experiment=pretrain_vae", "trainer.devices=auto")  # of the CPU there is one


@pytest.mark.parametrize(
    "devices, local, index",
    [("auto", 1, 1), ("2", 3, 3), ("[1]", 0, 1), ("[2,3]", 1, 3), ("'2,3'", 0, 2), ("'1,'", 0, 1)],
)
def test_stages_beside_the_fit_run_on_the_devices_that_it_was_given(tmp_path, monkeypatch, devices, local, index):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", str(local))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["+experiment=finetune_only", "trainer=ddp", f"trainer.devices={devices}"])
    assert Run(frozen(cfg), tmp_path).device == torch.device("cuda", index)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_metric_whose_weights_are_missing_ends_every_process(tmp_path, monkeypatch, rank):
    monkeypatch.setenv("SLURM_PROCID", rank)  # process 0 alone would leave the others waiting for its share
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(ValueError, match="I3D: no weights"):
        check(
            tmp_path,
            "+experiment=finetune_only",
            "stages=[evaluate]",
            "metric=[frechet_video]",
            f"metric.frechet_video.net.weights={tmp_path}/none.pt",
        )


@pytest.mark.parametrize("when", ["stages=[fit,sample,evaluate]", "stages=[fit] train.sample_every=5"])
def test_consistency_alone_is_refused_before_the_fit_and_not_after_it(tmp_path, when):
    with pytest.raises(ValueError, match=r"add morphing_degree, e.g. 'metric=\[subject_consistency"):
        check(tmp_path, "+experiment=finetune_only", "metric=[subject_consistency]", *when.split())
    check(tmp_path, "+experiment=finetune_only", "metric=[subject_consistency,morphing_degree]", *when.split())
    check(tmp_path, "+experiment=finetune_only", "metric=[subject_consistency]", "stages=[fit]", "train.sample_every=0")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["+experiment=drepa_vjepa", "sampler=image_to_video"], "choose sampler=ddim"),
        (["+experiment=svd_backward", "sampler=ddim"], "for SVD choose sampler=image_to_video"),
        (["+experiment=drepa_vjepa", "sampler=frameinit", "sampler.start.level=5000"], r"level=5000 .* use 0\.\.999"),
        (["+experiment=drepa_vjepa", "sampler.steps=2000"], r"sampler.steps is 2000"),
        (["+experiment=drepa_vjepa", "input.camera=pan_left", "input.image={a}", "input.frame=0"], "sampler=frameinit"),
        (["+experiment=drepa_vjepa", "input.image=[{a},{b}]"], "names 2 pictures, input.frame 1 places"),
        (
            ["+experiment=consisti2v", "dataset=clips", "dataset.root=x", "dataset.buckets=[[17,64,64],[17,64,60]]"],
            r"video.height=64, video.width=60",
        ),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused_at_the_start(tmp_path, pictures, typed, said):
    a, b = pictures
    with pytest.raises(ValueError, match=said):
        check(tmp_path, *[option.format(a=a, b=b) for option in typed])


def test_footage_that_moved_is_not_encoded_again(tmp_path):
    from small import small_run

    from timelapse.dataset.write import write_video

    (tmp_path / "here").mkdir()
    write_video(tmp_path / "here" / "a.mp4", torch.rand(12, 3, 32, 32) * 2 - 1)
    typed = ["dataset=clips", "dataset.val_share=0", "dataset.fractions=[1.0]", "dataset.windows=1"]
    typed += [f"dataset.index={tmp_path}/index.json", "train.validation_clips=1"]
    typed += [f"paths.cache={tmp_path}/cache"]
    find = lambda root: small_run(tmp_path / f"run-{root.name}", *typed, f"dataset.root={root}").validation_clips.folder
    before = find(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert find(tmp_path / "there") == before and len(list((tmp_path / "cache").iterdir())) == 1


def test_the_page_of_an_own_photograph_tells_how_it_was_made(tmp_path, pictures):
    from small import small_run

    from timelapse.report import write_report
    from timelapse.report.run_files import read_run

    def hydra_notes(*typed: str) -> None:
        (tmp_path / ".hydra").mkdir(exist_ok=True)
        (tmp_path / ".hydra" / "overrides.yaml").write_text("".join(f"- {o}\n" for o in typed))

    hydra_notes("+experiment=drepa_vjepa", "train.steps=7")
    small_run(tmp_path, experiment="drepa_vjepa")  # fitted some day; its config knows of no photograph
    source = trained(tmp_path / "some" / "run")
    typed = ["+experiment=drepa_vjepa", f"input.image={pictures[0]}", "input.frame=4", f"ckpt={source}"]
    hydra_notes(*typed, "stages=[report]")
    run = small_run(tmp_path, *typed[1:], "stages=[sample]", experiment="drepa_vjepa")
    assert read_run(tmp_path).command.endswith("+experiment=drepa_vjepa train.steps=7")  # of the run itself
    said = read_run(run.out)
    assert said.config["input"]["image"] == str(pictures[0]) and said.config["input"]["frame"] == 4
    assert said.config["git_commit"]
    assert said.command.split() == ["python", "-m", "timelapse.run", *typed, "'stages=[sample,evaluate,report]'"]
    assert "tiny V-JEPA 2 (1.2 M, synthetic world) stands in for V-JEPA 2 ViT-L." in said.notes
    page = write_report(run.out).read_text()
    assert all(html.escape(word) in page for word in [*typed, *said.notes])
    assert "Loss by term" not in page  # nothing was trained for a photograph


SHIPPED = "tiny CogVideoX-I2V (2.0 M, synthetic world) stands in for CogVideoX-5b-I2V."


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["+experiment=finetune_only"], [SHIPPED]),
        (
            ["+experiment=drepa_vjepa"],
            [SHIPPED, "tiny V-JEPA 2 (1.2 M, synthetic world) stands in for V-JEPA 2 ViT-L."],
        ),
        (["+experiment=finetune_only", "model.weights=null"], ["CogVideoX starts from random weights."]),
        (["+experiment=pretrain_cogvideox"], ["CogVideoX starts from random weights in transformer, text."]),
        (["+experiment=finetune_only", "model.weights=own/pipeline"], []),
        (["+experiment=finetune_only", "scale=paper", "dataset.root=x"], []),
        (["+experiment=inbetween", "sampler=crossfade"], []),  # which runs no network
        (
            ["+experiment=inbetween"],
            ["tiny SVD (2.5 M, synthetic directional motion) stands in for stable-video-diffusion-img2vid."],
        ),
    ],
)
def test_what_stands_in_for_what_is_said_of_what_is_built(tmp_path, typed, said):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = Run(frozen(compose("config", typed)), tmp_path)
    assert run.stand_ins() == said


def test_photographs_of_one_name_and_other_frames_have_folders_of_their_own(tmp_path, pictures):
    from small import small_run

    other = tmp_path / "elsewhere" / pictures[0].name
    other.parent.mkdir()
    other.write_bytes(pictures[0].read_bytes())
    typed = [(pictures[0], 4), (other, 4), (pictures[0], 5), (pictures[0], 4)]
    outs = [small_run(tmp_path / "run", f"input.image={p}", f"input.frame={f}").out for p, f in typed]
    assert len({*outs}) == 3 and outs[0] == outs[3]
    assert all(out.parent.name == "input" and out.name.startswith("a-") for out in outs)


def test_what_is_asked_of_one_photograph_otherwise_or_of_another_network_does_not_overwrite(tmp_path, pictures):
    from small import small_run

    of = lambda name: f"ckpt={trained(tmp_path / name)}"
    changes = [[], ["input.prompt=dawn"], ["input.negative_prompt=dawn"], ["seed=1"], ["sampler.steps=3"]]
    changes += [["sampler.guidance=9"], ["sample.weights=raw"], [of("one")], [of("two")]]
    typed = ["stages=[sample]", f"input.image={pictures[0]}", "input.frame=4"]
    out = lambda *more: small_run(tmp_path / "run", *typed, *more).out
    outs = [out(*change) for change in changes]
    assert len({*outs}) == len(changes) and [out(*change) for change in changes] == outs
    assert out("input.count=3", "trainer.precision=32") == outs[0]  # more of the same


@pytest.mark.parametrize(
    "typed, said",
    [
        ("train.checkpoint_every=0", "train.checkpoint_every=0; type a whole number of 1 or more"),
        ("train.validate_every=0", "train.validate_every=0"),
        ("train.learning_rate=abc", "train.learning_rate=abc; type a number above 0"),
        ("module.held_out_timesteps=[1000]", "whole numbers in 0..999"),
        ("conditioning.law=[99]", r"conditioning: frame 99 is outside the clip of 17 frames"),
        ("conditioning.law=[8,-1]", r"conditioning: frame -1 is outside the clip of 17 frames; use 0\.\.16"),
        ("conditioning=keyframes conditioning.counts=[40]", "lower conditioning.counts"),
        ("video.frames=abc", "video.frames=abc; type a whole number of 1 or more"),
        ("sample.frames=abc", r"sample.frames \['abc'\] is outside the clip of 17 frames; use 0\.\.16"),
        ("sample.frames=[]", r"sample.frames \[\] is outside"),
        ("sample.before=maybe", "sample.before=maybe; type true or false"),
        ("seed=abc", "seed=abc; type a whole number of 0 or more"),
        ("seed=-1", "seed=-1; type a whole number of 0 or more"),
        ("seed=true", "seed=True; type"),
        ("trainer.devices=0", "trainer.devices=0; type how many"),
        ("trainer.devices=-2", "trainer.devices=-2; type how many"),
        ("trainer.devices=abc", "trainer.devices=abc; type how many"),
        ("trainer.devices=[]", r"trainer.devices=\[\]; type how many"),
        ("trainer.num_nodes=0", "trainer.num_nodes=0; type"),
        ("sample.count=abc", "sample.count=abc; type a whole number of 1 or more"),
        ("sample.count=0", "sample.count=0; type"),
        ("sample.batch_size=0", "sample.batch_size=0; type"),
        ("stages=[sample] input.count=0", "input.count=0; type"),
        ("train.ema_decay=2", "train.ema_decay=2; type a number from 0 to below 1"),
        ("train.ema_decay=null", "train.ema_decay=None; type"),
        ("train.cooldown=2", r"train.cooldown=2; type a share of the steps, 0\.\.1"),
        ("train.clip_norm=abc", "train.clip_norm=abc; type a number of 0 or more"),
        ("train.keep=0", "train.keep=0; type a whole number of 1 or more, or null"),
        ("module.noises_per_clip=0", "module.noises_per_clip=0; type"),
        ("module.caption_dropout=abc", "module.caption_dropout=abc; type a number"),
        ("conditioning.law=8", "any_frame: law is 8; expected uniform or a list of frames"),
        ("loss=[]", r"finetuning needs 'denoise'"),
        ("loss=[drepa]", r"finetuning needs 'denoise', e.g. 'loss=\[denoise,drepa\]'"),
        ("trainer.precision=16-mixed", "trainer.precision=16-mixed: .* type trainer.precision=bf16-mixed"),
        ("model.align.layer=8", r"loss\.drepa reads block 8, the network has 0\.\.7; set model\.align\.layer"),
        ("sample.weights=emma", "type ema"),
        ("stages=[fit,export] export.merge=true", "export.merge=true: this model trains no LoRA"),
        ("stages=[export] export.merge=abc", "export.merge=abc; type true or false"),
        ("dataset=clips", "dataset.root is not set: type dataset.root=DIR"),
    ],
)
def test_a_number_that_would_fail_in_the_middle_of_a_training_fails_before_it(tmp_path, typed, said):
    with pytest.raises(ValueError, match=said):
        check(tmp_path, "+experiment=drepa_vjepa", *typed.split())


def test_numbers_that_a_training_can_do_with_are_let_through(tmp_path):
    typed = ["train.ema_decay=0", "train.cooldown=1", "train.clip_norm=null", "train.keep=null", "train.sample_every=0"]
    check(tmp_path, "+experiment=drepa_vjepa", *typed, "conditioning.law=[8,16]", "trainer.precision=16-mixed")
    for devices in ("auto", "-1", "2", "'0,'", "'0,1'", "[0]"):
        check(tmp_path, "+experiment=drepa_vjepa", f"trainer.devices={devices}")


def test_no_dataset_is_asked_for_where_none_is_read(tmp_path, pictures):
    check(tmp_path, "+experiment=finetune_only", "dataset=clips", "stages=[sample]", f"input.image={pictures[0]}")
    check(tmp_path, "+experiment=finetune_only", "scale=paper", "stages=[plan]")
    with pytest.raises(ValueError, match="two pictures at one place"):
        image = f"input.image=[{pictures[0]},{pictures[1]}]"
        check(tmp_path, "+experiment=finetune_only", "stages=[sample]", image, "input.frame=[16,-1]")


def test_files_left_out_are_those_of_now_and_the_footage_is_told(tmp_path):
    from small import small_run

    from timelapse.report.run_files import read_run

    class Footage:
        skipped = [("a.mp4", "empty file")]

        def summary(self):
            return {"clips": 3, "held_out_by": "source"}

    for _ in range(2):  # a second start, after the file was repaired
        run = small_run(tmp_path)
        run.note("train", Footage())
        run.note("val", Footage())
        said = read_run(tmp_path)
        assert said.skipped == [(str(file), reason) for file, reason in Footage.skipped]
        assert said.footage == dict.fromkeys(("train", "val"), {"clips": 3, "held_out_by": "source"})
        Footage.skipped = []
