"""Where sampling starts: correlated noise, and noise that already holds the layout of a video.

A noise law is `(shape (t,c,h,w), one generator a clip, device) -> (B,t,c,h,w)` of unit variance; the independent law is
`timelapse.randomness.randn`. A model is trained and sampled with the same law (config group `noise`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from timelapse.process import Process
from timelapse.randomness import randn
from timelapse.types import Codec, Condition

FILTERS = ("gaussian", "butterworth", "ideal")


def mixed(
    shape: tuple[int, ...],
    generators: list[torch.Generator],
    device: torch.device | str = "cpu",
    alpha: float = 1.5,
) -> Tensor:
    """Each frame shares a part of its noise with all others: correlation alpha^2 / (1 + alpha^2) between any two.

    Source: PYoCo's mixed noise (Ge et al. 2023, arXiv:2305.10474, section 4.1). alpha = 0 is independent noise.
    """
    return mix(randn((1, *shape[1:]), generators, device), randn(shape, generators, device), alpha)


def progressive(
    shape: tuple[int, ...],
    generators: list[torch.Generator],
    device: torch.device | str = "cpu",
    alpha: float = 2.0,
) -> Tensor:
    """Each frame's noise grows out of the last one's: correlation (alpha^2 / (1 + alpha^2))^(k/2) over k frames.

    Source: PYoCo's progressive noise (arXiv:2305.10474, section 4.1), where alpha = 2 was best.
    """
    return grow(randn(shape, generators, device), alpha)


def mix(shared: Tensor, own: Tensor, alpha: float) -> Tensor:
    """Mixed noise (B,t,c,h,w) of one frame's draw (B,1,c,h,w) and the frames' own (B,t,c,h,w)."""
    return _keep(alpha) * shared + _add(alpha) * own


def grow(own: Tensor, alpha: float) -> Tensor:
    """Progressive noise (B,t,c,h,w) of the frames' own draws; frame 0's stays as it is."""
    frames = [own[:, 0]]
    for frame in own[:, 1:].unbind(1):
        frames.append(_keep(alpha) * frames[-1] + _add(alpha) * frame)
    return torch.stack(frames, dim=1)


def low_pass(
    size: tuple[int, int, int], kind: str = "gaussian", cutoff: float = 0.25, time_cutoff: float = 0.25, order: int = 4
) -> Tensor:
    """(t,h,w) gains in [0,1] at the frequencies of `torch.fft.fftn` (0 first), 1 being half a cycle a frame or pixel.

    cutoff, time_cutoff: normalised stop frequencies D0 of space and time; 0 lets nothing through. gaussian: 0.607 at
    the stop frequency; butterworth of `order`: 0.5 there; ideal: 1 up to it, 0 after.
    Source: FreeInit (Wu et al. 2023, arXiv:2312.07537) and ConsistI2V's public code, with two corrections: frequency 0
    has gain 1 for odd sizes too, where a centre at T/2 misses it, and `ideal` stops at D0, not at sqrt(2 D0).
    """
    real = all(isinstance(x, int | float) and 0 <= x < math.inf for x in (cutoff, time_cutoff, order))
    if kind not in FILTERS or not real:
        raise ValueError(
            f"low_pass: kind={kind!r}, cutoff={cutoff}, time_cutoff={time_cutoff}, order={order}; expected one of "
            f"{', '.join(FILTERS)}, stop frequencies of 0 or more, e.g. 0.25, and an order, e.g. 4"
        )
    if cutoff == 0 or time_cutoff == 0:
        return torch.zeros(size)
    t, h, w = (2 * torch.fft.fftfreq(n, dtype=torch.float64, device="cpu") for n in size)
    squared = (cutoff / time_cutoff * t[:, None, None]) ** 2 + h[:, None] ** 2 + w**2
    if kind == "gaussian":
        gain = torch.exp(-squared / (2 * cutoff**2))
    elif kind == "butterworth":
        gain = 1 / (1 + (squared / cutoff**2) ** order)
    else:
        gain = (squared <= cutoff**2).double()
    return gain.float()


def exchange(low: Tensor, high: Tensor, gain: Tensor) -> Tensor:
    """(B,t,c,h,w) with the low frequencies of one and the rest of the other: high + IFFT(gain FFT(low - high)).

    The 3D transform runs over (t,h,w). gain: (t,h,w) from `low_pass`, symmetric, so that the result is real.
    """
    width = high.shape[-1]
    difference = torch.fft.rfftn((low - high).float(), dim=(1, 3, 4))
    kept = difference * gain.to(high.device)[:, None, :, : width // 2 + 1]
    return high + torch.fft.irfftn(kept, s=(high.shape[1], *high.shape[3:]), dim=(1, 3, 4)).to(high)


def undrawn() -> Tensor:
    """Stands for `draw` where a sampler was given none."""
    raise ValueError("sampler: this one adds noise on the way; pass draw, () -> noise (B,t,c,h,w) of the model's law")


class FrameInit:
    """Start from noise whose low frequencies are those of a noised still of the first frame (or of any other layout).

    z_tau = alpha layout + sigma noise; start = IFFT(G FFT(z_tau) + (1 - G) FFT(noise)), the same noise in both terms.
    Hence start = noise + G (alpha layout - (1 - sigma) noise). Source: ConsistI2V (arXiv:2402.04324), eq. 5 to 7.

    level: tau, a time of `reference`, or of the model's own process where that is None. The published 850 counts on
    Stable Diffusion's schedule; for another model the same signal-to-noise ratio is meant, not the same index, so its
    (alpha, sigma) are taken from there. cutoff, time_cutoff, filter, order: as in `low_pass`.
    """

    def __init__(
        self,
        level: int = 850,
        cutoff: float = 0.25,
        time_cutoff: float | None = None,
        filter: str = "gaussian",
        order: int = 4,
        reference: Process | None = None,
    ):
        if not isinstance(level, int):
            raise ValueError(f"frameinit: level={level!r}; expected a whole number, a time of the process, e.g. 850")
        self.level, self.reference = level, reference
        self.filter = {"kind": filter, "cutoff": cutoff, "order": order}
        self.filter["time_cutoff"] = cutoff if time_cutoff is None else time_cutoff
        low_pass((1, 1, 1), **self.filter)  # says what is wrong before anything is loaded

    def __call__(self, noise: Tensor, layout: Tensor, process: Process) -> Tensor:
        """Start (B,t,c,h,w) from unit noise and a clean latent video of the same shape."""
        return self.renew(layout, noise, noise, process)

    def renew(self, layout: Tensor, noise: Tensor, fresh: Tensor, process: Process) -> Tensor:
        """Low frequencies of the layout noised with `noise`, the rest from `fresh`."""
        if layout.shape != noise.shape:
            raise ValueError(f"frameinit: the layout is {tuple(layout.shape)}, the noise {tuple(noise.shape)}")
        process = self.check(process)
        alpha_bar = float(process.alpha_bar[self.level])
        noised = math.sqrt(alpha_bar) * layout + math.sqrt(1 - alpha_bar) * noise
        size = (noise.shape[1], *noise.shape[3:])
        return exchange(noised, fresh, low_pass(size, **self.filter))

    def check(self, process: Process) -> Process:
        """The process that `level` counts on, for a model of this one; ValueError if it cannot."""
        process = self.reference or process
        if not hasattr(process, "alpha_bar"):
            raise ValueError(
                "frameinit: level counts on a schedule in discrete time, which this model's process has not; set "
                "sampler.start.reference, e.g. by sampler=frameinit (SVD: image_to_video_frameinit)"
            )
        if not 0 <= self.level < process.steps:
            raise ValueError(f"frameinit: level={self.level} is outside of the process; use 0..{process.steps - 1}")
        return process


class FreeInit(FrameInit):
    """Sample again from the last result's low frequencies, noised to `level`, and fresh noise above the stop frequency.

    rounds: how often the whole sampling runs. Source: FreeInit (arXiv:2312.07537), Algorithm 1; 3 rounds, Butterworth
    of order 4, 0.25. At zero terminal SNR the last time holds no signal; `reference` is then a process that has some.
    """

    def __init__(self, rounds: int = 3, level: int = 999, filter: str = "butterworth", **filter_options):
        super().__init__(level, filter=filter, **filter_options)
        if not isinstance(rounds, int) or rounds < 1:
            raise ValueError(f"freeinit: rounds is {rounds!r}; expected a whole number of 1 or more, e.g. 3")
        self.rounds = rounds


def begin(start: FrameInit | None, noise: Tensor, condition: Condition, process: Process) -> Tensor:
    """The noise (B,t,c,h,w) that sampling starts from, float32: as it is, or as `start` makes it from the layout."""
    if start is None:
        return noise.float()
    if condition.layout is None:
        raise ValueError("sampler.start: condition.layout is None; give it the latents of a still video")
    return start(noise.float(), condition.layout, process)


def still(video: Tensor, known: Tensor, codec: Codec, latent: Tensor) -> Tensor:
    """Latents (B,t,c,h,w) of a video that stands still: each instant shows the nearest known frame.

    video: (B,T,3,H,W). known: (B,T) bool. latent: (B,t,c,h,w) of the known frames, as in a `Condition`; those are
    repeated where the codec works frame by frame, and where it compresses time the still video is encoded.
    """
    instants = torch.arange(known.shape[1], device=known.device)
    far = known.shape[1] + 1
    distance = (instants[:, None] - instants).abs() + far * (~known[:, None, :])  # (B,T,T)
    nearest = distance.argmin(2)
    pick = lambda frames: frames[torch.arange(len(known))[:, None], nearest.to(frames.device)]
    if codec.temporal_compression == 1:
        return pick(latent) / codec.condition_scale
    return codec.encode(pick(video))


def _keep(alpha: float) -> float:
    return math.sqrt(alpha**2 / (1 + alpha**2))


def _add(alpha: float) -> float:
    return math.sqrt(1 / (1 + alpha**2))
