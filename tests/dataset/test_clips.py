import json
import re

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from timelapse.dataset.clips import Clips, duration
from timelapse.dataset.fit import load_image
from timelapse.dataset.manifest import write_manifest

SMALL = {"frames": 5, "height": 16, "width": 16}


def photographs(folder, make_photo, seconds):
    for number, second in enumerate(seconds):
        make_photo(folder / f"{1588000000 + int(second)}.png", number)
    return folder


def frames_shown(item, number_of):
    return [number_of(frame) for frame in item["video"]]


def test_a_clip_of_a_video_shows_the_frames_it_names(tmp_path, make_video, number_of):
    make_video(tmp_path / "v" / "red_rose.mp4", frames=30)
    clips = Clips(tmp_path / "v", split="all", windows=2, **SMALL)
    assert len(clips) == 1 + 2 + 2
    for i, (start, span) in enumerate([(0, 30), (0, 15), (15, 15), (0, 7), (23, 7)]):
        item = clips[i]
        expected = start + np.linspace(0, span - 1, 5).round().astype(int)
        assert item["video"].shape == (5, 3, 16, 16) and item["video"].dtype == torch.float32
        assert frames_shown(item, number_of) == expected.tolist()
        assert item["seconds"].dtype == torch.float64
        assert np.allclose(item["seconds"], (expected - expected[0]) / 10)
        assert item["caption"] == "red rose"
        assert item["key"] == clips.keys[i] and item["key"].endswith(f"-w{start:03d}")


def test_photographs_are_chosen_by_capture_time(tmp_path, make_photo, number_of):
    seconds = [0, 1, 2, 3, 1000, 1990, 3010, 4000]  # a burst, then one in a while
    clips = Clips(
        photographs(tmp_path / "garden", make_photo, seconds), split="all", intervals=[1000], windows=1, **SMALL
    )
    item = clips[0]
    assert frames_shown(item, number_of) == [0, 4, 5, 6, 7]
    assert item["seconds"].tolist() == [0, 1000, 1990, 3010, 4000]  # when they were taken, not when they were wanted
    assert re.fullmatch(r"garden-[0-9a-f]{8}-i1000-w000", item["key"])
    assert clips.summary()["intervals"] == {"16.7 min": 1}


def test_a_source_is_shown_in_the_bucket_that_crops_it_least_and_then_as_long_as_it_can_be(tmp_path, make_video):
    make_video(tmp_path / "v" / "wide.mp4", frames=30, width=64, height=32)
    make_video(tmp_path / "v" / "tall.mp4", frames=30, width=32, height=64)
    make_video(tmp_path / "v" / "short_tall.mp4", frames=8, width=32, height=64)
    make_video(tmp_path / "v" / "square.mp4", frames=30, width=32, height=32)
    buckets = [[5, 16, 32], [9, 16, 32], [9, 32, 16], [5, 32, 16], [9, 64, 64], [9, 24, 24]]
    clips = Clips(tmp_path / "v", split="all", buckets=buckets, fractions=[1.0], windows=1)
    shown = {clip.source.caption: clip.shape for clip in clips.clips}
    assert shown == {
        "wide": (9, 16, 32), "tall": (9, 32, 16), "short tall": (5, 32, 16), "square": (9, 24, 24),  # not enlarged
    }  # fmt: skip
    assert [tuple(clips[i]["video"].shape) for i in range(4)] == [(t, 3, h, w) for t, h, w in clips.shapes]
    assert clips.shapes == sorted(clips.shapes, key=lambda shape: buckets.index(list(shape)))
    with pytest.raises(ValueError, match="each is \\[frames, height, width\\]"):
        Clips(tmp_path / "v", buckets=[[5, 16]])


def test_strides_of_an_uneven_video_are_intervals(tmp_path, make_uneven):
    make_uneven(tmp_path / "v" / "a.mkv", frames=24, after=1.2, slower=2)
    shown = Clips(tmp_path / "v", split="all", fractions=[], strides=[4], windows=1, **SMALL).clips[0]
    assert shown.window.interval == pytest.approx(4 * 4.6 / 23)  # four frames of the mean rate
    with pytest.raises(ValueError, match="set dataset.fractions or fewer frames"):
        Clips(tmp_path / "v", split="all", fractions=[], strides=[50], **SMALL)


def test_a_corrected_clock_is_another_dataset(tmp_path, make_photo):
    """The same files serve, but the cache's seconds would be the old ones."""
    make_photo(tmp_path / "g" / "a.png", 0), make_photo(tmp_path / "g" / "b.png", 1)
    prints = set()
    for times in ([0, 100], [0, 100], [0, 101]):
        row = {"id": "g", "frames": ["g/a.png", "g/b.png"], "seconds": times}
        write_manifest(tmp_path / "m.jsonl", [row])
        prints.add(Clips(tmp_path / "m.jsonl", split="all", frames=2, height=16, width=16).fingerprint())
    assert len(prints) == 2


def test_a_rows_own_rate_times_its_photographs(tmp_path, make_photo):
    for n in range(5):
        make_photo(tmp_path / "g" / f"{'edcba'[n]}.png", n)
    row = {"id": "g", "frames": [f"g/{c}.png" for c in "edcba"], "fps": 0.01}
    write_manifest(tmp_path / "m.jsonl", [row])
    item = Clips(tmp_path / "m.jsonl", split="all", fractions=[1.0], **SMALL)[0]
    assert item["seconds"].tolist() == [0, 100, 200, 300, 400]


def test_a_gap_rejects_the_windows_over_it(tmp_path, make_photo, number_of):
    seconds = [*range(0, 600, 100), *range(2000, 2600, 100)]
    clips = Clips(photographs(tmp_path / "g", make_photo, seconds), split="all", intervals=[100], windows=99, **SMALL)
    assert [frames_shown(item, number_of) for item in clips] == [
        [*range(0, 5)], [*range(1, 6)], [*range(6, 11)], [*range(7, 12)],
    ]  # fmt: skip
    assert clips.summary()["windows_rejected"] == 4
    with pytest.raises(ValueError, match="no clip of 9 frames.*widest gap is 25 min"):
        Clips(tmp_path / "g", split="all", intervals=[100], frames=9, height=16, width=16)


def test_train_and_val_never_share_a_frame(tmp_path, make_photo, make_video, number_of):
    garden = photographs(tmp_path / "one" / "garden", make_photo, range(0, 3600, 100))
    halves = [Clips(garden, split=split, **SMALL) for split in ("train", "val")]
    train, val = ({n for item in half for n in frames_shown(item, number_of)} for half in halves)
    assert max(train) < min(val) and halves[0].held_out_by == "time"
    for n in range(5):
        make_video(tmp_path / "many" / f"v{n}.mp4", frames=6)
    halves = [Clips(tmp_path / "many", split=split, **SMALL) for split in ("train", "val")]
    files = lambda half: {clip.source.name for clip in half.clips}
    assert (len(files(halves[0])), len(files(halves[1]))) == (4, 1) and files(halves[0]).isdisjoint(files(halves[1]))
    assert halves[0].held_out_by == "source"


def test_one_short_source_trains_but_does_not_validate_on_itself_unasked(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", frames=7)
    assert len(Clips(path, split="train", **SMALL)) > 0
    with pytest.raises(ValueError, match="dataset.val_share=0"):
        Clips(path, split="val", **SMALL)
    same = [Clips(path, split=split, val_share=0, **SMALL) for split in ("train", "val")]
    assert same[0].keys == same[1].keys and same[1].summary()["held_out_by"] == "nothing"


def test_bad_footage_is_skipped_counted_and_named(tmp_path, make_video, make_photo):
    good = make_video(tmp_path / "good.mp4", frames=12, textured=True, movflags="faststart")
    (tmp_path / "cut.mp4").write_bytes(good.read_bytes()[:-900])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "notes.docx").write_text("x")
    make_video(tmp_path / "short.mp4", frames=3)
    make_photo(tmp_path / "single" / "1588251633.jpg")
    make_photo(tmp_path / "timeless" / "a.jpg")
    make_photo(tmp_path / "timeless" / "b.jpg")
    garden = photographs(tmp_path / "garden", make_photo, range(0, 900, 100))
    (garden / "1588009999.jpg").write_bytes(b"torn")
    make_photo(garden / "undated.jpg")
    make_photo(garden / "1588000000_copy.png")
    clips = Clips(tmp_path, split="all", **SMALL)
    assert {clip.source.name for clip in clips.clips} == {"good.mp4", "garden"}
    reasons = {path: reason.split(":")[0] for path, reason in clips.skipped}
    assert reasons.pop("cut.mp4") in ("damaged", "not a readable video")
    assert reasons == {
        "empty.mp4": "empty file",
        "text.mp4": "not a readable video",
        "notes.docx": "not a video or photograph",
        "short.mp4": "too short",
        "single": "too few photographs",
        "timeless": "no capture times",
        "garden/1588009999.jpg": "not a readable photograph",
        "garden/undated.jpg": "no capture time",
        "garden/1588000000_copy.png": "same capture time as 1588000000.png",
    }
    assert sum(clips.summary()["skipped"].values()) == len(clips.skipped) == 10
    json.dumps(clips.summary())
    assert len(Clips(tmp_path / "timeless", split="all", photo_interval=60, frames=2, height=8, width=8)) == 1


def test_nothing_left_is_one_clear_line(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "c.mp4").write_text("x")
    with pytest.raises(ValueError, match="no clip of 5 frames is left; skipped 2 empty file, 1 not a") as error:
        Clips(tmp_path, **SMALL)
    assert "\n" not in str(error.value)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="nothing was skipped"):
        Clips(tmp_path / "nothing", **SMALL)


def test_damage_after_the_start_is_named(tmp_path, make_video, make_photo):
    video = make_video(tmp_path / "v" / "a.mp4", frames=6)
    photographs(tmp_path / "garden", make_photo, range(0, 500, 100))
    clips = {name: Clips(tmp_path / name, split="all", **SMALL) for name in ("v", "garden")}
    video.write_bytes(video.read_bytes() + b"more")
    with pytest.raises(OSError, match="a.mp4: it changed"):
        clips["v"][0]
    video.unlink()
    with pytest.raises(FileNotFoundError, match="a.mp4"):
        clips["v"][0]
    (tmp_path / "garden" / "1588000200.png").unlink()
    with pytest.raises(FileNotFoundError, match="1588000200.png"):
        clips["garden"][0]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_decode_the_same_clips(context, tmp_path, make_video, make_photo):
    make_video(tmp_path / "a.mp4", frames=12, textured=True)
    photographs(tmp_path / "garden", make_photo, range(0, 900, 100))
    clips = Clips(tmp_path, split="all", windows=1, **SMALL)
    here = [clips[i] for i in range(len(clips))]  # decord has been open in this process: workers must not care
    loader = DataLoader(clips, batch_size=2, num_workers=2, multiprocessing_context=context, timeout=250)
    there = list(loader)
    assert [key for batch in there for key in batch["key"]] == clips.keys
    assert torch.equal(torch.cat([b["video"] for b in there]), torch.stack([item["video"] for item in here]))
    assert torch.equal(torch.cat([b["seconds"] for b in there]), torch.stack([item["seconds"] for item in here]))


def test_keys_are_unique_safe_and_the_same_each_time(tmp_path, make_video):
    for folder in ("x", "y ü"):
        make_video(tmp_path / folder / "same name.mp4", frames=24)
    clips = Clips(tmp_path, split="all", **SMALL)
    assert len(set(clips.keys)) == len(clips) and all(re.fullmatch(r"[A-Za-z0-9._-]+", key) for key in clips.keys)
    again = Clips(tmp_path, split="all", **SMALL)
    assert again.keys == clips.keys and again.fingerprint() == clips.fingerprint()
    make_video(tmp_path / "x" / "same name.mp4", frames=24, textured=True)
    changed = Clips(tmp_path, split="all", **SMALL)
    assert changed.keys == clips.keys and changed.fingerprint() != clips.fingerprint()
    assert Clips(tmp_path, split="all", fit="pad", **SMALL).fingerprint() != changed.fingerprint()


def test_a_few_clips_are_of_many_sources(tmp_path, make_video):
    for name in "abc":
        make_video(tmp_path / f"{name}.mp4", frames=24)
    whole, few = (Clips(tmp_path, split="all", size=size, **SMALL) for size in (None, 4))
    assert len(whole) > 6 and few.keys == whole.keys[:4]
    assert [clip.source.id[0] for clip in whole.clips[:6]] == ["a", "b", "c"] * 2
    assert few.fingerprint() != whole.fingerprint()


def test_a_manifest_cuts_events_and_names_splits(tmp_path, make_video, make_photo, number_of):
    make_video(tmp_path / "v" / "long.mp4", frames=40)
    photographs(tmp_path / "garden", make_photo, range(0, 500, 100))
    names = sorted(path.name for path in (tmp_path / "garden").iterdir())
    rows = [
        {"id": "event", "source": "long", "file": "v/long.mp4", "seconds": [1.0, 1.8], "fps": 0.1, "caption": "opens"},
        {"id": "gone", "source": "long", "file": "v/gone.mp4"},
        {"id": "event", "source": "long", "file": "v/long.mp4"},
        {
            "id": "garden",
            "source": "g",
            "frames": [f"garden/{name}" for name in names],
            "seconds": [0, 5, 12, 15, 20],
            "split": "val",
        },
    ]
    write_manifest(tmp_path / "manifest.jsonl", rows)
    train = Clips(tmp_path, fractions=(1.0,), **SMALL)
    assert sorted(train.skipped) == [("event", "second row with the same id"), ("v/gone.mp4", "no such file")]
    assert [c.key for c in train.clips] == ["event-i20-w010"]
    assert frames_shown(train[0], number_of) == [10, 12, 14, 16, 18]  # 1.0 s to 1.8 s of playback
    assert train[0]["seconds"].tolist() == pytest.approx([0, 20, 40, 60, 80])  # one frame in ten seconds, two a step
    assert train[0]["caption"] == "opens"
    val = Clips(tmp_path / "manifest.jsonl", split="val", fractions=(1.0,), **SMALL)
    assert frames_shown(val[0], number_of) == [0, 1, 2, 3, 4] and val[0]["seconds"].tolist() == [0, 5, 12, 15, 20]
    assert val.held_out_by == "manifest"


def test_a_photograph_given_to_a_model_is_fitted_as_its_training_clips_were(tmp_path, make_photo):
    for n in range(5):
        make_photo(tmp_path / f"{1588000000 + n}.jpg", n, size=(300, 200))
    clips = Clips(tmp_path, split="all", **SMALL)
    for n in range(5):
        assert torch.equal(clips[0]["video"][n], load_image(tmp_path / f"{1588000000 + n}.jpg", 16, 16)[0])


@pytest.mark.parametrize(
    "wrong", [{"frames": 1}, {"windows": 0}, {"val_share": 1.0}, {"fit": "stretch"}, {"fractions": [2]},
              {"strides": [0]}, {"intervals": [-1]}, {"photo_interval": -5}],
)  # fmt: skip
def test_numbers_out_of_range(wrong, tmp_path):
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        Clips(tmp_path, **{**SMALL, **wrong})


def test_durations_read_well():
    said = [duration(s) for s in (0.0417, 90, 1000, 8280, 86400, 172800, 38.25 * 86400)]
    assert said == ["0.0417 s", "90 s", "16.7 min", "2.3 h", "24 h", "2 d", "38.2 d"]


@pytest.mark.footage
def test_a_real_garden_photographed_unevenly(footage, tmp_path):
    if not (footage / "plant_garden").is_dir():
        pytest.skip(f"no plant_garden in {footage}")
    make = lambda split: Clips(footage / "plant_garden", split=split, check="probe", index=tmp_path / "index.jsonl")
    train, val = make("train"), make("val")
    frames = lambda clips: {frame for clip in clips.clips for frame in clip.frames}
    assert not train.skipped and max(frames(train)) < min(frames(val)) and len(train) >= 4 and len(val) >= 4
    daily = [clip for clip in train.clips if clip.window.interval == 86400]
    assert len(daily) == 4
    for clip in daily:
        times = clip.source.times[list(clip.window.frames)]
        assert np.abs(np.diff(times) - 86400).max() < 3600 * 3 + 60  # one evening's photograph is missing
    item = train[train.clips.index(daily[0])]
    assert item["video"].shape == (17, 3, 64, 64) and item["seconds"][-1] == pytest.approx(16 * 86400, abs=60)


@pytest.mark.footage
def test_real_videos_read_alike_by_both_readers(footage, tmp_path):
    if not (footage / "motion" / "bear.mp4").is_file():
        pytest.skip(f"no motion/bear.mp4 in {footage}")
    seen = [Clips(footage / "motion" / "bear.mp4", split="all", check=check, index=tmp_path / "i") for check in
            ("full", "probe")]  # fmt: skip
    assert seen[1].clips[0].source.video.reader == "pyav"
    assert torch.equal(seen[0][0]["video"], seen[1][0]["video"])


def test_the_config_and_the_constructor_agree():
    import inspect
    from pathlib import Path

    from omegaconf import OmegaConf

    config = OmegaConf.load(Path(__file__).parents[2] / "conf" / "dataset" / "clips.yaml")
    assert set(config) - {"_target_"} == set(inspect.signature(Clips.__init__).parameters) - {"self"}
    assert config._target_ == f"{Clips.__module__}.{Clips.__name__}"


def test_a_look_at_the_footage_before_training(tmp_path, make_video, monkeypatch, capsys):
    from PIL import Image

    from timelapse.dataset.__main__ import main

    make_video(tmp_path / "a.mp4", frames=40)
    (tmp_path / "b.mp4").touch()
    arguments = f"{tmp_path} --frames 5 --size 16 24 --sheet {tmp_path}/s.png".split()
    monkeypatch.setattr("sys.argv", ["x", *arguments])
    assert main() == 0
    said = capsys.readouterr().out
    assert "skipped b.mp4: empty file" in said and "held_out_by  time" in said
    assert Image.open(tmp_path / "s.png").width == 9 * 24
    monkeypatch.setattr("sys.argv", ["x", str(tmp_path / "none")])
    assert main() == 1 and "does not exist" in capsys.readouterr().err
