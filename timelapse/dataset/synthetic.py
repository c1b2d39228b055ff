"""An endless, seeded world of time-lapses, painted on demand: the training set of the tiny models and, because the
truth is known, the proving ground of metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from timelapse.dataset.failures import FAILURES, flicker, freeze, splice, zigzag
from timelapse.dataset.world.processes import PROCESSES, SCENARIOS, colour_of, draw_identity, narrowed, render, stranger
from timelapse.dataset.world.view import MARGIN, draw_views, seen
from timelapse.randomness import keyed


class Synthetic(Dataset):
    """Clips of ten processes (`timelapse.dataset.world.processes.PROCESSES`), taken in turn by index.

    A clip's identity and pace depend on (seed, split, index) and its process alone, so that a clip and its failed
    version can be compared in pairs, and the same clip can be had at another length or size in pixels.

    size: number of clips. frames: T, what the model takes. height, width: pixels.
    processes: names to take of `SCENARIOS`, None for the ten. failure: one of `FAILURES`, planted into every clip, or
    None. camera: share of clips over which a camera pans or zooms; the others have one at rest. span: least and largest
    share of its process that a clip shows, from any moment on, as footage does; None: nearly all of it. colours: share
    of clips whose caption tells the colour that a first frame hides ("time-lapse of a flower blooming, yellow"); where
    a swap or cut is planted, that of the first half. ranges: process -> name -> narrower choice or interval of what its
    clips' identities are drawn from, e.g. {flower: {petals: [5]}}; None: all there is.
    split: any word, e.g. train or val; different splits never share a clip.

    Item: video (T,3,H,W) float32 in [-1,1]; mask (T,1,H,W) in [0,1], the subject; stage (T,) in [0,1], increasing
    unless static or zigzag is planted; seconds (T,) float64, real capture times from 0; caption; key.
    """

    def __init__(
        self,
        size: int = 1024,
        frames: int = 17,
        height: int = 64,
        width: int = 64,
        seed: int = 0,
        processes: Sequence[str] | None = None,
        failure: str | None = None,
        split: str = "train",
        camera: float = 0.0,
        span: Sequence[float] | None = None,
        colours: float = 0.0,
        ranges: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    ):
        self.names = tuple(processes or PROCESSES)
        for name in self.names:
            if name not in SCENARIOS:
                raise ValueError(
                    f"synthetic: no process is called {name!r}; "
                    f"set dataset.processes to some of [{','.join(SCENARIOS)}]"
                )
        if failure is not None and failure not in FAILURES:
            raise ValueError(
                f"synthetic: no failure is called {failure!r}; "
                f"set dataset.failure to null or one of {', '.join(FAILURES)}"
            )
        if min(size, frames, height, width) < 1:
            raise ValueError(
                f"synthetic: size, frames, height and width must be at least 1, got {size}, {frames}, {height}, {width}"
            )
        self.size, self.frames, self.height, self.width = size, frames, height, width
        if not 0 <= camera <= 1:
            raise ValueError(f"synthetic: dataset.camera={camera} is a share of clips, 0..1, e.g. 0.5")
        if not 0 <= colours <= 1:
            raise ValueError(f"synthetic: dataset.colours={colours} is a share of captions, 0..1, e.g. 0.8")
        if span is not None and not (len(span) == 2 and 0 < span[0] <= span[1] <= 1):
            raise ValueError(
                f"synthetic: dataset.span={list(span)} is the least and largest share of a process that a clip shows, "
                f"0..1, e.g. [0.3,0.6]"
            )
        self.seed, self.failure, self.split, self.camera, self.span = seed, failure, split, camera, span
        self.colours, self.ranges = colours, narrowed(ranges)

    def __len__(self) -> int:
        return self.size

    @property
    def keys(self) -> list[str]:
        """Clip keys in order, without painting a frame."""
        return [self.key(i) for i in range(self.size)]

    def key(self, index: int) -> str:
        return f"synthetic-{self.split}-{self.seed}-{index:06d}"

    def fingerprint(self) -> str:
        """Digest of the code that paints; the numbers of a clip are in the dataset's config."""
        here = Path(__file__).parent
        files = [here / "synthetic.py", here / "failures.py", here.parent / "randomness.py", *here.glob("world/*.py")]
        return blake2b(b"".join(file.read_bytes() for file in sorted(files)), digest_size=8).hexdigest()

    def _draw(self, index: int, purpose: str) -> torch.Generator:
        return keyed("synthetic", self.seed, self.split, index, self.process(index), purpose)

    def process(self, index: int) -> str:
        return self.names[index % len(self.names)]

    def identity(self, index: int) -> dict[str, float]:
        """Ground truth of a clip: its process by number (`process`, in the order of SCENARIOS) and all that was
        drawn for it, e.g. `petal_hue`; the names differ between processes."""
        name = self.process(index)
        return {"process": list(SCENARIOS).index(name)} | draw_identity(
            name, self._draw(index, "identity"), self.ranges.get(name)
        )

    def caption(self, index: int) -> str:
        """What the clip shows, with the colour that it grows into in a share `colours` of them."""
        name, told = self.process(index), torch.rand((), generator=self._draw(index, "caption")) < self.colours
        colour = colour_of(name, self.identity(index)) if told else ""
        return SCENARIOS[name].caption + (colour and f", {colour}")

    def clean_stage(self, index: int) -> Tensor:
        """(T,) strictly increasing progress at an uneven pace, from U(0, 0.15) to U(0.8, 1) or over `span`."""
        start, end, pace, ease = torch.rand(4, generator=self._draw(index, "stage")).tolist()
        if self.span is None:
            start, end = 0.15 * start, 0.8 + 0.2 * end
        else:
            share = self.span[0] + end * (self.span[1] - self.span[0])
            start = start * (1 - share)
            end = start + share
        time = torch.linspace(0, 1, self.frames)
        path = time ** math.exp(0.8 * (pace - 0.5))
        path = path + 0.6 * ease * (path * path * (3 - 2 * path) - path)
        return start + (end - start) * path

    def __getitem__(self, index: int) -> dict:
        if not -self.size <= index < self.size:
            raise IndexError(f"synthetic: clip {index} of {self.size}")
        index %= self.size
        name, who, stage = self.process(index), self.identity(index), self.clean_stage(index)
        if self.failure == "static":
            stage = freeze(stage)
        elif self.failure == "zigzag":
            stage = zigzag(stage)
        draw = self._draw(index, "camera")
        views = draw_views(draw) if torch.rand((), generator=draw) < self.camera else None
        larger = 1.0 if views is None else MARGIN
        size = round(larger * self.height), round(larger * self.width)
        video, mask = render(name, who, stage, *size)
        if self.failure in ("swap", "cut"):
            draw = self._draw(index, self.failure)
            if self.failure == "swap":
                half, other = stage[self.frames // 2].item(), name
                other_who = stranger(name, who, half, draw, self.ranges.get(name))
            else:
                others = [p for p in PROCESSES if p != name]
                other = others[int(torch.randint(len(others), (), generator=draw))]
                other_who = draw_identity(other, draw, self.ranges.get(other))
            other_video, other_mask = render(other, other_who, stage, *size)
            video, mask = splice(video, other_video), splice(mask, other_mask)
        if views is not None:
            video, mask = (seen(x, views, self.height, self.width) for x in (video, mask))
        if self.failure == "flicker":
            video = flicker(video, self._draw(index, "flicker"))
        scenario = SCENARIOS[name]
        shortest, longest = scenario.seconds
        u = torch.rand((), generator=self._draw(index, "seconds"), dtype=torch.float64)
        duration = shortest * (longest / shortest) ** u
        return {
            "video": video,
            "mask": mask,
            "stage": stage,
            "seconds": torch.linspace(0, 1, self.frames, dtype=torch.float64) * duration,
            "caption": self.caption(index),
            "key": self.key(index),
        }
