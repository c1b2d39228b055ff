"""Pages from run directories with real, written files; what a reader would be misled by is asserted."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from timelapse.callback.history import History
from timelapse.dataset.write import write_video
from timelapse.report import write_report
from timelapse.study import study_page

EVIL = "<script>alert('x')</script>"


def make_run(folder: Path, caption: str = "a rose", clips: int = 2, known: tuple[int, ...] = (2,)) -> Path:
    (folder / "samples").mkdir(parents=True)
    ramp = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 3, 16, 16)
    per_clip = {}
    for i in range(clips):
        write_video(folder / f"samples/c.{i}.mp4", ramp)
        write_video(folder / f"samples/c.{i}.truth.mp4", -ramp)
        write_video(folder / f"samples/c.{i}.raw weights.mp4", ramp)
        about = {"caption": caption, "known": list(known), "frames": 5, "seconds": [0, 1, 2, 3, 7200.0]}
        (folder / f"samples/c.{i}.json").write_text(json.dumps(about))
        per_clip[f"c.{i}"] = {"subject_consistency": 0.9 + 0.02 * i, "morphing_degree": 0.4}
    metric = {"n": clips, "higher_is_better": True, "range": [0, 1], "what": "First.\n\nRest of it."}
    metric["network"] = "NetOne"
    metrics = {"subject_consistency": {**metric, "value": 0.91}, "morphing_degree": {**metric, "value": 0.4}}
    (folder / "evaluation.json").write_text(
        json.dumps({"metrics": metrics, "per_clip": per_clip, "notes": ["A stands in for B."]})
    )
    notes = {"skipped": [[f"{EVIL}.mp4", "2 frames"]], "notes": ["EfficientNet-Lite0 stands in for DINOv3"]}
    (folder / "notes.json").write_text(json.dumps(notes))
    (folder / "config.yaml").write_text("name: mine\nabout: One sentence.\nseed: 3\ngit_commit: abc1234+\n")
    (folder / "overrides.yaml").write_text("- +experiment=mine\n- 'loss=[denoise]'\n- stages=[report]\n")
    history = History(folder)
    for step in range(4):
        history.log_metrics({"train/loss": 1.0, "train/denoise": 0.9, "train/drepa": 0.2}, step)
    history.log_metrics({"val/denoise_t100": 0.5, "val/denoise_t999": 0.7}, 4)
    return folder


class Seen(HTMLParser):
    """Tags of a page, addresses that it would load, and its visible text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.loads, self.text, self.inside = [], [], "", []
        self.feed(html)

    def handle_starttag(self, name: str, attributes: list) -> None:
        self.tags.append(name)
        self.loads += [v for k, v in attributes if k in ("src", "href", "data", "poster") and v]
        self.inside += [name] if name in ("script", "style") else []

    def handle_endtag(self, name: str) -> None:
        if self.inside and self.inside[-1] == name:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        self.text += "" if self.inside else data + " "


def test_the_page_is_one_file_and_loads_nothing(tmp_path: Path):
    html = write_report(make_run(tmp_path)).read_text()
    seen = Seen(html)
    assert seen.tags.count("video") == 6  # truth, sample and variant of two clips
    assert all(address.startswith(("data:", "#")) for address in seen.loads)
    assert not re.search(r"""(url\((?!#)|@import|https?://(?!www\.w3\.org))""", html)
    first = re.search(r'<video src="data:video/mp4;base64,([^"]+)"', html)[1]
    assert base64.b64decode(first) == (tmp_path / "samples/c.0.truth.mp4").read_bytes()


def test_a_name_with_brackets_keeps_its_real_clip(tmp_path: Path):
    folder = make_run(tmp_path, clips=1)
    for path in (folder / "samples").iterdir():
        path.rename(path.with_name(path.name.replace("c.0", "rose [dQw4]-00")))
    assert Seen(write_report(folder).read_text()).tags.count("video") == 3


def test_what_comes_from_outside_is_escaped(tmp_path: Path):
    html = write_report(make_run(tmp_path, caption=f'{EVIL}" onload="x')).read_text()
    seen = Seen(html)
    assert EVIL not in html and f"{EVIL}.mp4" in seen.text  # shown as text, also the name of the skipped file
    assert seen.tags.count("script") == 1  # ours


def test_sc_and_md_are_shown_together_with_n_or_not_at_all(tmp_path: Path):
    text = Seen(write_report(make_run(tmp_path / "a")).read_text()).text
    assert "0.910" in text and "0.400" in text and "n = 2 clips" in text
    alone = make_run(tmp_path / "b")
    numbers = json.loads((alone / "evaluation.json").read_text())
    del numbers["metrics"]["morphing_degree"]
    (alone / "evaluation.json").write_text(json.dumps(numbers))
    html = write_report(alone).read_text()
    assert "No headline numbers yet" in html and 'class="number"' not in html


def test_the_given_frame_is_the_one_marked(tmp_path: Path):
    html = write_report(make_run(tmp_path, known=(1, 3), clips=1)).read_text()
    cells = re.search(r'<div class="time".*?</div>', html)[0]
    assert re.findall(r"<i( class=\"given\")?>", cells) == ["", ' class="given"', "", ' class="given"', ""]
    assert 'data-known="1,3"' in html and "frames 1, 3 of 0–4 given" in html
    assert html.count('<figure class="given">') == 2


def test_it_says_what_ran_and_how_to_run_it_again(tmp_path: Path):
    text = Seen(write_report(make_run(tmp_path)).read_text()).text
    assert "python -m timelapse.run +experiment=mine 'loss=[denoise]'" in text and "stages=" not in text
    assert "abc1234 with changes that were not committed" in text
    assert "EfficientNet-Lite0 stands in for DINOv3" in text and "A stands in for B." in text
    assert "training: drepa" in text and "held out: denoise" in text and "t = 999" in text
    assert "2 h" in text and "±" in text
    assert "NetOne" in text  # that the metrics read


def test_previews_are_a_strip_a_step(tmp_path: Path):
    ramp = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 3, 16, 16)
    folder = make_run(tmp_path)
    assert "While training" not in write_report(folder).read_text()
    for step in range(100, 1300, 100):
        (folder / f"training_samples/step{step:06d}").mkdir(parents=True)
        write_video(folder / f"training_samples/step{step:06d}/c.0.mp4", ramp)
    html = write_report(folder).read_text()
    strip = re.search(r'src="data:image/webp;base64,([^"]+)" alt="film strips by step"', html)[1]
    height = Image.open(io.BytesIO(base64.b64decode(strip))).height
    assert "While training" in html and height == 8 * (72 + 18 + 4) + 4  # eight of the twelve


def test_a_studys_page_says_what_stands_in_for_what(tmp_path: Path):
    text = Seen(study_page([make_run(tmp_path / "a")], tmp_path / "out").read_text()).text
    assert text.count("EfficientNet-Lite0 stands in for DINOv3") == 1 and text.count("A stands in for B.") == 1


def test_a_run_without_samples_numbers_or_curves_says_so(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("name: young\n")
    text = Seen(write_report(tmp_path).read_text()).text
    assert all(f"No {part} yet" in text for part in ("headline numbers", "samples", "curves", "metrics"))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="not a run directory"):
        write_report(tmp_path)
    make_run(tmp_path / "a")
    (tmp_path / "a/evaluation.json").write_text("{")
    with pytest.raises(ValueError, match="damaged.*stages="):
        write_report(tmp_path / "a")
