"""Pairs from a list that a command writes: videos, and DAVIS's folders of numbered pictures."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest
import torch
from PIL import Image

from timelapse.dataset import pairs
from timelapse.dataset.pairs import Pairs, find
from timelapse.dataset.write import write_video


@pytest.fixture(scope="module")
def footage_dir(tmp_path_factory):
    """A lossless video of 12 grey frames, and DAVIS-like pictures: frame k has brightness k/20."""
    root = tmp_path_factory.mktemp("footage")
    level = lambda k: torch.full((3, 16, 16), 2 * k / 20 - 1)
    write_video(root / "clip.mkv", torch.stack([level(k) for k in range(12)]), lossless=True)
    folder = root / "JPEGImages" / "480p" / "bear"
    folder.mkdir(parents=True)
    for k in range(9):
        Image.new("RGB", (16, 16), (round(255 * k / 20),) * 3).save(folder / f"{k:05d}.png")
    (root / "broken.mp4").write_bytes(b"no video")
    return root


def brightness(item) -> list[int]:
    return ((item["video"].mean((1, 2, 3)) + 1) * 10).round().int().tolist()


def test_the_command_pins_pairs_and_the_dataset_serves_the_truth_between(footage_dir, tmp_path, monkeypatch, capsys):
    out = tmp_path / "lists" / "of" / "pairs.jsonl"  # neither folder is there
    monkeypatch.setattr(sys, "argv", ["pairs", str(footage_dir), "--distance", "6", "--each", "2", "--out", str(out)])
    assert pairs.main() == 0
    said = capsys.readouterr().out
    assert "4 pairs, 1 sources skipped" in said and "skipped broken.mp4" in said
    data = Pairs(str(out), str(footage_dir), frames=4, height=8, width=8)
    assert data.keys == ["clip-00000", "clip-00005", "JPEGImages-480p-bear-00000", "JPEGImages-480p-bear-00002"]
    assert [brightness(data[i]) for i in range(4)] == [[0, 2, 4, 6], [5, 7, 9, 11], [0, 2, 4, 6], [2, 4, 6, 8]]
    assert data[1]["video"].shape == (4, 3, 8, 8) and data[1]["seconds"].tolist() == [0, 2, 4, 6]


def test_of_davis_one_resolution_is_taken_and_no_mask(tmp_path):
    davis, flat = tmp_path / "DAVIS", tmp_path / "flat"
    shown = [davis / "JPEGImages" / size / clip for size in ("1080p", "480p") for clip in ("bear", "swan")]
    masks = [davis / "Annotations" / size / clip for size in ("1080p", "480p") for clip in ("bear", "swan")]
    for folder in (*shown, *masks, flat / "JPEGImages" / "cat", flat / "Annotations" / "cat"):
        folder.mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (4, 4)).save(folder / f"{k:05d}.{'png' if 'Annotations' in folder.parts else 'jpg'}")
    keys = lambda root: [row["key"] for row in find(root, 3)[0]]
    at_480p = ["JPEGImages-480p-bear-00000", "JPEGImages-480p-swan-00000"]
    assert keys(davis) == at_480p and keys(davis / "JPEGImages") == [key.removeprefix("JPEGImages-") for key in at_480p]
    assert keys(davis / "JPEGImages" / "1080p") == ["bear-00000", "swan-00000"]
    assert keys(flat) == ["JPEGImages-cat-00000"]  # without a folder of the resolution
    assert keys(tmp_path) == [*(f"DAVIS-{key}" for key in at_480p), "flat-JPEGImages-cat-00000"]
    assert find(davis, 3)[1] == []


def test_what_is_wrong_is_said(footage_dir, tmp_path):
    rows, skipped = find(footage_dir, 9)
    assert [row["key"] for row in rows] == ["clip-00000"]
    assert ("JPEGImages/480p/bear", "too short: 9 frames, the distance needs 10") in skipped
    with pytest.raises(FileNotFoundError, match="write it with"):
        Pairs(str(tmp_path / "no.jsonl"), ".", 4, 8, 8)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="lower --distance"):
        Pairs(str(tmp_path / "empty.jsonl"), ".", 4, 8, 8)
    (tmp_path / "short.jsonl").write_text('{"key": "a", "file": "clip.mkv", "first": 0, "last": 2}\n')
    with pytest.raises(ValueError, match="--distance 3 or more"):
        Pairs(str(tmp_path / "short.jsonl"), ".", 4, 8, 8)
    (tmp_path / "out.jsonl").write_text('{"key": "a", "file": "../clip.mkv", "first": 0, "last": 5}\n')
    with pytest.raises(ValueError, match="leaves its root"):
        Pairs(str(tmp_path / "out.jsonl"), str(footage_dir), 4, 8, 8)


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "not JSON"),
        ("[1, 2]", "expected key, first, last, and either file"),
        ('{"file": "clip.mkv", "first": 0, "last": 6}', "expected key"),
        ('{"key": "b", "first": 0, "last": 6}', "either file"),
        ('{"key": "b", "file": "clip.mkv", "last": 6}', "first=None, last=6; expected two places in a video"),
        ('{"key": "b", "frames": ["0.png", "1.png"], "first": 0, "last": 2}', "two places in 2 frames"),
        ('{"key": "b", "file": "clip.mkv", "first": "0", "last": 6}', "first=0"),
        ('{"key": "a", "file": "clip.mkv", "first": 1, "last": 7}', "that of line 1 too"),
    ],
)
def test_a_malformed_row_is_named_by_its_line(footage_dir, tmp_path, line, said):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"key": "a", "file": "clip.mkv", "first": 0, "last": 6}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=said) as error:
        Pairs(str(path), str(footage_dir), 4, 8, 8)
    assert f"{path} line 3: " in str(error.value) and "\n" not in str(error.value)


def test_what_cannot_be_read_is_left_out_with_its_reason(footage_dir, tmp_path, caplog):
    root = shutil.copytree(footage_dir, tmp_path / "footage")
    frames = [f"JPEGImages/480p/bear/{k:05d}.png" for k in range(7)]
    (root / frames[2]).write_bytes((root / frames[2]).read_bytes()[:45])
    rows = [
        {"key": "good", "file": "clip.mkv", "first": 0, "last": 6},
        {"key": "damaged", "file": "broken.mp4", "first": 0, "last": 6},
        {"key": "gone", "file": "no.mp4", "first": 0, "last": 6},
        {"key": "shorter", "file": "clip.mkv", "first": 6, "last": 12},
        {"key": "torn", "frames": frames, "first": 0, "last": 6},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level("INFO"):
        data = Pairs(str(tmp_path / "pairs.jsonl"), str(root), 4, 8, 8)
    assert data.keys == ["good"] and brightness(data[0]) == [0, 2, 4, 6]
    assert "1 pairs of" in caplog.text and "4 skipped" in caplog.text
    reasons = dict(data.skipped)
    assert "not a readable video" in reasons["damaged"] and reasons["gone"] == "no.mp4: no such file"
    assert reasons["shorter"] == "clip.mkv: 12 frames, the pair ends at frame 12 (from 0)"
    assert reasons["torn"].startswith(f"{frames[2]}: not a readable photograph")
    (tmp_path / "none.jsonl").write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(ValueError, match="none of .* can be read under .*; damaged: broken.mp4: "):
        Pairs(str(tmp_path / "none.jsonl"), str(root), 4, 8, 8)


def test_a_changed_file_is_another_dataset(footage_dir, tmp_path):
    (tmp_path / "clip.mkv").write_bytes((footage_dir / "clip.mkv").read_bytes())
    (tmp_path / "pairs.jsonl").write_text('{"key": "a", "file": "clip.mkv", "first": 0, "last": 6}\n')
    made = lambda: Pairs(str(tmp_path / "pairs.jsonl"), str(tmp_path), 4, 8, 8).fingerprint()
    before = made()
    assert made() == before
    write_video(tmp_path / "clip.mkv", torch.ones(12, 3, 16, 16), lossless=True)
    assert made() != before


def test_videos_of_one_name_have_keys_of_their_own(footage_dir, tmp_path):
    for name in ("a.mkv", "a.mp4", "b.mkv"):
        (tmp_path / name).write_bytes((footage_dir / "clip.mkv").read_bytes())
    keys = [row["key"] for row in find(tmp_path, 6)[0]]
    assert len({*keys}) == 3 and keys[2] == "b-00000" and all(re.match("a-[0-9a-f]{8}-00000", k) for k in keys[:2])
