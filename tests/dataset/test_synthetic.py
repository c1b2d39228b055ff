"""The synthetic world: what is true of a clip by construction must be true of its pixels."""

from __future__ import annotations

import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from timelapse.dataset import failures, synthetic
from timelapse.dataset.synthetic import Synthetic
from timelapse.dataset.world import shape
from timelapse.dataset.world.canvas import Canvas, hsv
from timelapse.dataset.world.plants import FLOWER
from timelapse.dataset.world.processes import PROCESSES, draw_identity, render, stranger
from timelapse.dataset.world.view import draw_views
from timelapse.metric.camera import camera_path
from timelapse.randomness import keyed

ALL = list(PROCESSES)
FRAMES = 17  # of a clip and its failed version; the half way mark is after frame 8
GROWS = {"flower": 1, "seedling": 1, "dough": 1, "fruit": 1, "mushroom": 1, "candle": -1, "ice": -1}


def clip(process: str, stage: torch.Tensor, draw: int = 0, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    return render(process, draw_identity(process, keyed("test", process, draw)), stage, size, size)


def spearman(x: torch.Tensor) -> float:
    """Rank correlation of a sequence with its own order."""
    rank = x.argsort().argsort().double()
    return torch.corrcoef(torch.stack([rank, torch.arange(len(x)).double()]))[0, 1].item()


@pytest.mark.parametrize("process", ALL)
def test_a_clip_depends_on_its_index_alone(process):
    data = Synthetic(processes=(process,), height=24, width=24, frames=5)
    first, other = data[0], data[1]
    again = Synthetic(processes=(process,), height=24, width=24, frames=5, size=2)[-1]  # alone, in a smaller set
    assert all(torch.equal(other[k], again[k]) for k in ("video", "mask", "stage", "seconds"))
    assert (other["key"], other["caption"]) == (again["key"], again["caption"])
    assert not torch.equal(first["video"], other["video"])


@pytest.mark.parametrize("process", ALL)
def test_ranges_hold_and_the_picture_is_finite(process):
    for i in range(2):
        item = Synthetic(processes=(process,), height=16, width=24, frames=3)[i]
        assert item["video"].shape == (3, 3, 16, 24) and item["mask"].shape == (3, 1, 16, 24)
        assert item["video"].dtype == torch.float32 and item["seconds"].dtype == torch.float64
        assert item["video"].isfinite().all() and item["video"].abs().max() <= 1
        assert item["mask"].min() >= 0 and item["mask"].max() <= 1
        assert item["mask"].amax((1, 2, 3)).min() > 0.1  # there is a subject in every frame
        assert (item["stage"].diff() > 0).all() and item["stage"][0] <= 0.15 and item["stage"][-1] >= 0.8
        assert item["seconds"][0] == 0 and (item["seconds"].diff() > 0).all()
        assert len(item["caption"].encode()) <= 40


@pytest.mark.parametrize("process", ALL)
def test_the_further_apart_two_stages_the_more_the_pictures_differ(process):
    """On average over a clip; not pair by pair, since bread that browns against a dark oven comes closer to it."""
    video = torch.cat([clip(process, torch.linspace(0, 1, 7), draw)[0][:, None] for draw in range(2)], dim=1)
    by_lag = [(video[lag:] - video[:-lag]).abs().mean() for lag in (1, 2, 3, 5)]
    assert by_lag == sorted(by_lag) and by_lag[0] < 0.5 * by_lag[-1], by_lag


@pytest.mark.parametrize("process", GROWS)
def test_the_mask_grows_or_shrinks(process):
    stage = torch.linspace(0, 1, 7)
    for draw in range(2):
        _, mask = clip(process, stage, draw)
        area = mask.mean((1, 2, 3)) if process != "ice" else mask.amax(-1).mean((1, 2))  # ice: height above the pool
        assert spearman(GROWS[process] * area) > 0.85, area


HIDDEN = [("dough", "crust_hue")] + [(name, process.hidden) for name, process in PROCESSES.items() if process.hidden]


@pytest.mark.parametrize("process, name", HIDDEN)
def test_the_colour_to_come_is_a_secret_of_the_first_frame(process, name):
    who = draw_identity(process, keyed("test", process)) | ({"white": 0} if process == "flower" else {})
    red, other = who | {name: 0.99}, who | {name: 0.55}
    stage = torch.tensor([0.0, 1.0])
    a, b = render(process, red, stage, 32, 32)[0], render(process, other, stage, 32, 32)[0]
    first, last = (a - b).abs().mean((1, 2, 3))
    assert first < 0.002 and last > 0.02


def test_what_stands_before_the_subject_is_not_the_subject():
    """Where another vessel changes the picture of a loaf, the mask has no loaf."""
    who = draw_identity("dough", keyed("test", "dough")) | {"plain": 0}
    stage = torch.linspace(0, 1, 5)
    (red, mask), (blue, _) = (render("dough", who | {"vessel_hue": hue}, stage, 64, 64)[:2] for hue in (0.0, 0.6))
    vessel = (red - blue).abs().amax(1) > 0.5
    assert vessel.float().mean() > 0.05 and mask[:, 0][vessel].max() < 0.5 and mask.amax((1, 2, 3)).min() > 0.7


SHOWS = {  # red, green and blue of a saturated pixel
    "red": lambda r, g, b: r > 3 * max(g, b),
    "orange": lambda r, g, b: r > g > b and g < 0.65 * r,
    "yellow": lambda r, g, b: r >= g > 3 * b and g > 0.65 * r,
    "green": lambda r, g, b: g >= r > b or g > b > r,
    "blue": lambda r, g, b: b > g >= r,
    "purple": lambda r, g, b: b > r > g or b >= r > g,
    "pink": lambda r, g, b: r > b > g,
}


def test_a_caption_tells_the_colour_that_the_first_frame_hides():
    data = Synthetic(size=300, colours=0.8)
    told = 0
    for i in range(data.size):
        name, who = data.process(i), data.identity(i)
        plain, _, colour = data.caption(i).partition(", ")
        assert plain == Synthetic(size=300).caption(i) == PROCESSES[name].caption
        assert len(data.caption(i).encode()) < 40  # with its end mark what the small text encoder reads
        if colour == "white":
            assert who["white"]
        elif colour:
            assert SHOWS[colour](*hsv(who[PROCESSES[name].hidden], 1.0, 1.0).flatten().tolist()), (name, who, colour)
        told += bool(colour)
    hides = sum(bool(PROCESSES[data.process(i)].hidden) for i in range(data.size))
    assert hides == 210 and abs(told / hides - 0.8) < 0.08
    one, other = (Synthetic(size=10, height=16, width=16, frames=3, colours=share)[0] for share in (0.0, 1.0))
    assert torch.equal(one["video"], other["video"]) and one["caption"] != other["caption"]


def test_narrower_ranges_narrow_what_they_name_and_nothing_else():
    """A clip's other numbers are those of the whole world, also where another subject is planted."""
    ranges = {"flower": {"petals": [5, 8], "size": [0.5, 0.52]}, "tea": {"scene": [0]}}
    wide, narrow = (Synthetic(size=60, processes=["flower", "tea"], ranges=r) for r in (None, ranges))
    for i in range(60):
        whole, some = wide.identity(i), narrow.identity(i)
        assert {k for k in whole if whole[k] != some[k]} <= {*ranges[narrow.process(i)]}
    flowers = [narrow.identity(i) for i in range(0, 60, 2)]
    assert {who["petals"] for who in flowers} == {5, 8} and all(0.5 <= who["size"] <= 0.52 for who in flowers)
    assert {wide.identity(i)["petals"] for i in range(0, 60, 2)} == set(FLOWER["petals"])
    stage = torch.tensor([0.9])
    other = stranger("flower", flowers[0], 0.9, keyed("other"), {"petals": [8]})
    assert other["petals"] == 8 and render("flower", other, stage, 8, 8)[0].shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ({"flour": {"petals": [5]}}, "ranges.flour: there are the processes flower, seedling"),
        ({"flower": {"petal": [5]}}, "ranges.flower.petal: there are light, hue, .*petals"),
        ({"flower": {"petals": [4]}}, r"petals=\[4\]: expected some of \[5, 6, 7, 8, 11\]"),
        ({"flower": {"size": [0.1, 0.5]}}, r"expected an interval within \[0.46, 0.62\]"),
        ({"flower": {"size": [0.5]}}, "expected an interval"),
        ({"flower": {"petals": []}}, "expected some of"),
    ],
)
def test_ranges_that_the_world_has_not_are_refused(ranges, said):
    with pytest.raises(ValueError, match=said):
        Synthetic(ranges=ranges)


def test_edges_are_anti_aliased():
    """Coverage of a disc is its area, also when it lies between pixels, and moves smoothly with it."""
    areas, before = [], None
    for shift in torch.linspace(0, 1, 11).tolist():
        canvas = Canvas(32, 32)
        disc = shape.norm(canvas.x - shift * canvas.pixel, canvas.y) - 0.5
        canvas.paint(disc, torch.ones(1, 3, 1, 1), subject=True)
        assert ((canvas.mask > 0.05) & (canvas.mask < 0.95)).sum() > 20
        areas.append(canvas.mask.sum().item() * canvas.pixel**2)
        if before is not None:
            assert (canvas.mask - before).abs().max() < 0.15  # a tenth of a pixel changes no pixel by much more
        before = canvas.mask
    assert areas == pytest.approx([torch.pi * 0.25] * 11, rel=0.01)


def test_a_smaller_picture_is_the_larger_one_seen_from_afar():
    stage = torch.tensor([0.6])
    for process in ALL:
        small, large = clip(process, stage, size=24)[0], clip(process, stage, size=96)[0]
        assert (torch.nn.functional.avg_pool2d(large, 4) - small).abs().mean() < 0.05, process


def test_splits_and_seeds_share_no_clip():
    sets = [Synthetic(size=20, seed=s, split=p) for s in (0, 1) for p in ("train", "val")]
    keys = [f"synthetic-{d.split}-{d.seed}-{i:06d}" for d in sets for i in range(20)]
    assert len(set(keys)) == len(keys)
    identities = [tuple(d.identity(i).items()) for d in sets for i in range(20)]
    assert len(set(identities)) == len(identities)
    assert sets[1][3]["key"] == "synthetic-val-0-000003"


def test_processes_take_turns():
    data = Synthetic(size=20)
    assert [data.identity(i)["process"] for i in range(20)] == [*range(len(ALL)), *range(len(ALL))]


def pair(process: str, failure: str, index: int = 0) -> tuple[dict, dict]:
    kwargs = dict(processes=(process,), height=24, width=24, frames=FRAMES)
    return Synthetic(**kwargs)[index], Synthetic(**kwargs, failure=failure)[index]


@pytest.mark.parametrize("process", ALL[1::2])
def test_static_keeps_its_first_frame_but_for_sway_and_light(process):
    clean, static = pair(process, "static")
    assert torch.equal(clean["video"][0], static["video"][0]) and (static["stage"] == clean["stage"][0]).all()
    moved = [(c["video"] - c["video"][:1]).abs().mean((1, 2, 3)).max() for c in (clean, static)]
    assert moved[1] < 0.05 and moved[1] < 0.5 * moved[0]
    assert (static["video"].diff(dim=0) != 0).any()  # the extras are still there


@pytest.mark.parametrize("process, failure", [(p, "swap") for p in ALL[:5]] + [("candle", "cut"), ("tea", "cut")])
def test_swap_and_cut_are_the_clean_clip_for_its_first_half(process, failure):
    clean, broken = pair(process, failure)
    half = 9
    assert torch.equal(clean["video"][:half], broken["video"][:half])
    jump = [(c["video"][half] - c["video"][half - 1]).abs().mean() for c in (clean, broken)]
    assert jump[1] > 1.5 * jump[0]


def test_zigzag_breaks_the_order_and_nothing_else():
    clean, zigzag = pair("flower", "zigzag")
    assert torch.equal(clean["video"][0], zigzag["video"][0])
    step = zigzag["stage"].diff()
    assert ((step[1:] * step[:-1]) < 0).all()  # up, down, up, down
    assert zigzag["stage"].min() >= 0 and zigzag["stage"].max() <= 1
    stage = torch.tensor([0.1, 0.3, 0.5, 0.9])
    assert failures.zigzag(stage, 0.2).tolist() == pytest.approx([0.1, 0.5, 0.3, 0.9])  # 0.9 + 0.2 is reflected


def test_flicker_changes_the_light_of_whole_frames_only():
    clean, flicker = pair("flower", "flicker")
    gain = (flicker["video"] + 1).mean((1, 2, 3)) / (clean["video"] + 1).mean((1, 2, 3))
    assert torch.allclose(flicker["video"] + 1, gain.view(-1, 1, 1, 1) * (clean["video"] + 1), atol=1e-5)
    assert gain.min() >= 0.6 and gain.max() <= 1.0 and gain.diff().abs().mean() > 0.05
    assert torch.equal(clean["mask"], flicker["mask"]) and torch.equal(clean["stage"], flicker["stage"])


@pytest.mark.parametrize(
    "kwargs, word",
    [
        (dict(processes=("rose",)), "dataset.processes"),
        (dict(failure="blur"), "dataset.failure"),
        (dict(frames=0), "frames"),
        (dict(span=[0.6, 0.3]), "dataset.span"),
    ],
)
def test_mistakes_are_named(kwargs, word):
    with pytest.raises(ValueError, match=word):
        Synthetic(**kwargs)


def test_a_camera_moves_over_some_clips_and_the_measure_of_it_agrees():
    """Over a world at rest, so that all motion is the camera's; the others are the clips they were."""
    still, moved = (Synthetic(size=12, failure="static", camera=share) for share in (0.0, 0.5))
    agreed = []
    for i in range(12):
        draw, video = moved._draw(i, "camera"), moved[i]["video"]
        if torch.rand((), generator=draw) >= 0.5:
            assert torch.equal(still[i]["video"], video)
            continue
        views = draw_views(draw)
        assert not torch.equal(still[i]["video"], video)
        wanted = (views[1, :2] - views[0, :2]) / (views[0, 2] + views[1, 2])  # in shares of what is seen
        if views[0, 2] == views[1, 2]:  # no zoom
            agreed.append((camera_path(video[None])[0] - wanted).abs().max())
            assert 0.1 < wanted.norm() < 0.3
    assert len(agreed) >= 2 and max(agreed) < 0.04


def test_a_span_shows_a_part_of_the_process_from_any_moment_on():
    """The subject is the same one; what some clips end with, others begin with."""
    whole, part = Synthetic(size=64), Synthetic(size=64, span=[0.35, 0.6])
    stages = torch.stack([part.clean_stage(i) for i in range(64)])
    share = stages[:, -1] - stages[:, 0]
    assert (stages.diff(dim=1) > 0).all() and stages.min() >= 0 and stages.max() <= 1
    assert 0.35 - 1e-6 <= share.min() < 0.4 and 0.55 < share.max() <= 0.6 + 1e-6
    assert stages[:, 0].max() > 0.5 > stages[:, -1].min()
    assert part.identity(3) == whole.identity(3)


def test_another_world_is_another_fingerprint(tmp_path):
    """A cache of what was painted before a change must not answer for what is painted now."""
    source = Path(synthetic.__file__)
    shutil.copytree(
        source.parent / "world", tmp_path / "dataset" / "world", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("synthetic.py", "failures.py"):
        shutil.copy(source.parent / name, tmp_path / "dataset")
    shutil.copy(source.parents[1] / "randomness.py", tmp_path)
    spec = spec_from_file_location("copied", tmp_path / "dataset" / "synthetic.py")
    spec.loader.exec_module(copied := module_from_spec(spec))
    print_of = lambda: copied.Synthetic(size=1).fingerprint()
    before = print_of()
    assert before == Synthetic(size=3, seed=1).fingerprint()  # of the world; a clip's own numbers are in the config
    for name in ("dataset/world/plants.py", "dataset/world/new.py", "randomness.py"):
        with (tmp_path / name).open("a") as file:
            file.write("X = 1\n")
        assert print_of() != before
        before = print_of()
