"""Own pictures through ConsistI2V's applications: long video, camera motion, and what is said of bad input."""

from __future__ import annotations

import gc
import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from timelapse.build import build, frozen
from timelapse.dataset.fit import to_unit
from timelapse.dataset.write import read_video
from timelapse.parts import Run
from timelapse.run import CONF
from timelapse.sampling import led, sample_input

SMALL = [
    "+experiment=consisti2v",
    "trainer=cpu",
    "model.weights=null",
    "model.unet.block_out_channels=[16,16]",
    "model.unet.down_block_types=[CrossAttnDownBlock2D,DownBlock2D]",
    "model.unet.up_block_types=[UpBlock2D,CrossAttnUpBlock2D]",
    "model.unet.attention_head_dim=[2,2]",
    "model.vae.block_out_channels=[8,8,8,8]",
    "model.align=null",
    "video={frames: 5, height: 32, width: 32}",
    "sampler.steps=2",
]


@pytest.fixture
def picture(tmp_path):
    x = torch.arange(96) % 32 * 8
    image = x.expand(64, 96).to(torch.uint8).numpy()
    Image.fromarray(image).convert("RGB").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def asked(picture, *overrides: str) -> Run:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*SMALL, f"input.image={picture}", f"paths.cache={picture.parent}/c", *overrides])
    return Run(frozen(cfg), picture.parent / "run")


def run(picture, *overrides: str) -> Run:
    made = asked(picture, *overrides)
    made.freeze()
    made.module.materialise()
    return made


def video(run: Run, suffix: str = "") -> torch.Tensor:
    (path,) = run.out.glob(f"samples/*n00{suffix}.mkv")
    return to_unit(read_video(path))


def test_chunks_share_a_frame_and_the_first_is_that_of_a_single_clip(picture):
    one = run(picture)
    sample_input(one)
    single = video(one)
    long = run(picture, "sampler.n_chunks=3")
    sample_input(long)
    frames = video(long)
    assert len(single) == 5 and len(frames) == 3 * 5 - 2
    assert torch.equal(frames[:5], single)
    about = json.loads(next(long.out.glob("samples/*.json")).read_text())
    assert about["known"] == [0] and about["frames"] == 13


@pytest.mark.parametrize("own", [True, False])
def test_memory_does_not_grow_with_the_length_of_a_video(picture, own):
    """From an own picture, and from validation clips: what was made before the last piece is let go."""
    from timelapse.sampling import sample_clips

    some = ["input.image=null", "dataset.size=2", "train.validation_clips=1", "sample.count=1", "cache.enabled=false"]
    made = run(picture, "sampler.n_chunks=5", *([] if own else some))
    stream, held = made.module.stream, []

    def watched(*args, **options):
        for piece in stream(*args, **options):
            held.append(living())
            yield piece

    made.module.stream = watched
    (sample_input if own else sample_clips)(made)
    assert len(held) == 5 and max(held[2:]) <= held[1]


def living() -> int:
    """Bytes of all tensors that are alive."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def test_the_last_latent_goes_on_without_being_decoded(picture):
    long = run(picture, "sampler.n_chunks=2", "sampler.start=null")
    seen = []

    class Watched:
        n_chunks, start = 2, None

        def __call__(self, model, condition, negative, noise, generators, **options):
            seen.append((condition.latent.clone(), condition.known.clone()))
            return noise  # as good a result as any

    batch = {"key": ["a"], "caption": ["x"], "video": torch.zeros(1, 5, 3, 32, 32)}
    known = torch.tensor([[True, False, False, False, False]])
    pieces = list(long.module.stream(batch, known, Watched()))
    assert [p.shape[1] for p in pieces] == [5, 4]
    (_, first), (latent, then) = seen
    from timelapse.randomness import keyed_each

    noise = long.noise_law(tuple(latent.shape[1:]), keyed_each(["a"], 0, "start"))
    torch.testing.assert_close(latent[:, 0], noise[:, -1])
    assert (latent[:, 1:] == 0).all() and torch.equal(then, first)


def test_a_pan_starts_from_one_side_and_leads_the_start(picture):
    left, right = (run(picture, f"input.camera=pan_{way}") for way in ("left", "right"))
    first = []
    for made in (left, right):
        sample_input(made)
        first.append(video(made, ".given")[0])
    assert not torch.equal(*first)  # each from its own side of the picture


def test_after_the_camera_each_chunk_has_the_samplers_own_start_and_its_filter_stays(picture):
    typed = [
        "input.camera=zoom_in",
        "input.camera_level=null",  # the paper's; the recipe of small latents has others
        "input.camera_cutoff=null",
        "sampler.n_chunks=3",
        "+sampler.start.filter=butterworth",
        "+sampler.start.order=2",
    ]
    made, starts = run(picture, *typed), []
    layout, lead = led(made.cfg, str(picture))
    own = build(made.cfg.sampler)
    assert lead.start.filter == {"kind": "butterworth", "cutoff": 0.5, "order": 2, "time_cutoff": 0.5}
    assert (lead.start.level, own.start.level) == (750, 850) and own.start.filter["cutoff"] == 0.25
    for sampler in (lead, own):  # nothing but which one is asked matters
        sampler.integrate = lambda denoise, z, *_, sampler=sampler: starts.append(sampler.start.level) or z
    batch = {"key": ["a"], "caption": ["x"], "video": layout[None]}
    known = torch.tensor([[True, False, False, False, False]])
    list(made.module.stream(batch, known, own, layout=layout[None], lead=lead))
    assert starts == [750, 850, 850]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["input.camera=pan_lefft"], r"input\.camera='pan_lefft' is unknown; choose one of pan_left"),
        (["input.camera=perspective", "input.points=[[0,0],[1,1],[1,0],[0,1]]"], "convex quadrilateral"),
        (["input.camera=perspective"], "convex quadrilateral"),
        (["input.camera=zoom_in", "input.frame=2"], r"input\.frame=0"),
        (["input.camera=zoom_in", "input.camera_level=1000"], r"use 0\.\.999"),
        (["sampler.n_chunks=0"], r"sampler\.n_chunks is 0"),
        (["input.frame=2"], r"frame 0 only; set sample\.frames=\[0\]"),
        (["video.width=36"], "multiples of 8"),
    ],
)
def test_bad_input_is_one_clear_line(picture, overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        sample_input(run(picture, *overrides))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override, message",
    [
        ("input.camera=pan_lefft", "choose one of pan_left"),
        ("input.camera=perspective", "convex quadrilateral"),
        ("sampler.n_chunks=0", "n_chunks is 0"),
        ("video.width=36", "multiples of 8, e.g. 32 and 32"),
        ("input.image=no.jpg", "input.image: no.jpg is not there"),
        ("input.camera=perspective input.points=5", r"input\.points=5: expected a convex quadrilateral"),
        ("input.camera=zoom_in input.camera_level=1000", r"level=1000 is outside of the process; use 0\.\.999"),
        ("input.camera=zoom_in input.camera_level=850.5", r"level=850\.5; expected a whole number"),
        ("input.camera=zoom_in input.camera_cutoff=x", "cutoff=x, .*stop frequencies of 0 or more"),
        ("sampler.start.level=850.5", r"sampler: frameinit: level=850\.5; expected a whole number"),
        ("sampler.start.level=x", "start.level=x; type a whole number"),
        ("sampler.start.cutoff=x", "start.cutoff=x; type a number"),
        ("input.camera=zoom_in video.frames=1", "at least 2 frames; video.frames is 1"),
        ("input.points=[[0,0],[1,0],[1,1],[0,1]]", "input.camera=perspective go; type that"),
        ("input.camera=zoom_in input.points=[[0,0],[1,0],[1,1],[0,1]]", "input.camera=perspective go; type that"),
    ],
)
def test_bad_input_is_said_before_anything_is_trained(picture, override, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        asked(picture, *override.split()).check()
    assert "\n" not in str(error.value)


def test_cogvideox_can_be_led_too_and_a_sampler_without_a_start_cannot(picture):
    import sys
    import warnings
    from pathlib import Path

    from timelapse.evaluation import evaluate_run

    sys.path.insert(0, str(Path(__file__).parent))
    from small import small_run

    lead = ["input.camera=zoom_in", f"input.image={picture}", "sampler.steps=1", "sampler.guidance=1"]
    made = small_run(picture.parent / "cog", *lead, "sampler=frameinit")
    made.module.materialise()
    sample_input(made)
    assert len(video(made)) == 9
    assert made.cfg.sampler.start.reference.schedule == "scaled_linear"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # torchmetrics': of real clips, which there are none of
        evaluate_run(made)


def test_clips_of_several_shapes_go_through_all_stages(tmp_path, monkeypatch):
    """ConsistI2V takes any size: two wide clips, two long tall ones, in batches of two."""
    from timelapse.dataset.write import write_video
    from timelapse.evaluation import evaluate_run
    from timelapse.sampling import sample_clips
    from timelapse.stages import fit

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "index"))
    footage = tmp_path / "footage"
    footage.mkdir()
    for name, shape in (("wide", (8, 3, 32, 64)), ("tall", (8, 3, 64, 32))):
        for n in range(2):
            g = torch.Generator().manual_seed(n)
            write_video(footage / f"{name}{n}.mp4", torch.rand(shape, generator=g) * 2 - 1)
    typed = ["dataset=clips", f"dataset.root={footage}", "dataset.val_share=0", "dataset.fractions=[1.0]"]
    typed += ["dataset.buckets=[[4,32,64],[6,64,32]]", "dataset.windows=1", "sample.count=4", "sample.frames=[0]"]
    typed += ["train.steps=4", "train.batch_size=2", f"paths.cache={tmp_path}/cache"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = Run(frozen(compose("config", [*SMALL, *typed])), tmp_path / "run")
    run.check()
    run.freeze()
    fit(run)
    sample_clips(run)
    made = {path.stem: tuple(read_video(path).shape) for path in (run.folder / "samples").glob("*.mkv")}
    assert sorted(made.values()) == sorted([(4, 3, 32, 64)] * 4 + [(6, 3, 64, 32)] * 4)  # each with its truth
    evaluate_run(run)
    assert json.loads((run.folder / "metrics.json").read_text())["subject_consistency_n"] == 4

    typed += ["dataset.val_share=0.3", "dataset.buckets=[[6,64,32]]"]
    with initialize_config_dir(str(CONF), version_base="1.3"):  # one shape, which is not `video`'s
        alone = Run(frozen(compose("config", [*SMALL, *typed])), tmp_path / "alone")
    alone.freeze()
    sample_clips(alone)
    said = [json.loads(path.read_text()) for path in (alone.folder / "samples").glob("*.json")]
    assert said and all(clip["known"] == [0] and clip["frames"] == 6 for clip in said)
