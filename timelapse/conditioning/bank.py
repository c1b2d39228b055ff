"""A bank of noise prefixes: before its first known frame, an any-frame condition encodes noise and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from timelapse.randomness import keyed, randn


class NoiseBank:
    """Encodes clips that begin with one of `size` fixed noises, doing the work of that beginning only once.

    The CogVideoX VAE is causal between chunks (frames 0-8, then 8 at a time; inside a chunk its group norms see all
    frames), so the chunks before the first known frame give the same latents, and leave the same state behind,
    whatever follows. With the known frame drawn evenly from those after the first, 26 % of the pixels of a 17-frame
    clip and 43 % of a 49-frame one are never encoded again. From the chunk of the first known frame on, noise is fresh
    at every step.

    size: number of beginnings; a clip's generator chooses. variance: of the noise, pixels in [-1,1]. seed: of the bank.
    Each beginning is made when it is first asked for and kept in main memory: latents, and the encoder's state (the
    last two frames that each of its causal convolutions saw) before each chunk. At 480x720 that state is about 2 GiB
    a chunk in bfloat16, 10 GiB a beginning of 49 frames; at 64x64 it is a few MiB.
    """

    def __init__(self, size: int, variance: float, seed: int = 0):
        if size < 1:
            raise ValueError(
                f"conditioning.bank is {size}; expected the number of noise clips kept, e.g. 8, or 0 for none"
            )
        self.size, self.variance, self.seed = size, variance, seed
        self.made: dict[tuple, list[Tensor]] = {}  # (n, shape) -> what each chunk made so far is encoded to
        self.state: dict[tuple, list[Any]] = {}  # the encoder's state before each chunk

    def choose(self, generator: torch.Generator) -> int:
        return int(torch.randint(self.size, (1,), generator=generator))

    def noise(self, n: int, shape: tuple[int, ...]) -> Tensor:
        """(T,3,H,W): the n-th noise clip, the same whenever it is asked for."""
        return randn(shape, [keyed(self.seed, "bank", n)])[0] * self.variance**0.5

    def fill(self, noise: Tensor, known: Tensor, n: int, codec: Any) -> tuple[Tensor, int]:
        """`noise` (T,3,H,W) with the chunks before the first frame of `known` (T,) from the bank, and their number."""
        first = int(known.int().argmax())
        chunks = codec.chunks(len(noise))
        before = next(i for i, (_, end) in enumerate(chunks) if first < end)
        until = chunks[before][0]
        if not until:
            return noise, 0
        return torch.cat([self.noise(n, tuple(noise.shape))[:until].to(noise), noise[until:]]), before

    @torch.no_grad()
    def moments(self, codec: Any, chosen: list[int], video: Tensor, before: list[int]) -> tuple[Tensor, Tensor]:
        """`codec.moments(video)` of clips (B,T,3,H,W) whose first `before[b]` chunks are those of noise `chosen[b]`.

        Clips that begin in the same chunk are encoded together.
        """
        chunks, device, rows = codec.chunks(video.shape[1]), video.device, {}
        for start in sorted(set(before)):
            group = [b for b, chunk in enumerate(before) if chunk == start]
            kept = [self.beginning(codec, chosen[b], tuple(video.shape[1:]), start, device) for b in group]
            parts = [torch.cat(part).to(device) for part in zip(*(made for made, _ in kept))]
            state = moved(together([state for _, state in kept]), device)
            for begin, end in chunks[start:]:
                part, state = codec.encode_chunk(video[group, begin:end], state)
                parts.append(part)
            rows |= dict(zip(group, torch.cat(parts, dim=2)))
        return codec.moments_of(torch.stack([rows[b] for b in range(len(before))]))

    def beginning(
        self, codec: Any, n: int, shape: tuple[int, ...], chunks: int, device: torch.device
    ) -> tuple[list[Tensor], Any]:
        """What the first `chunks` chunks of noise n are encoded to, and the encoder's state after them."""
        made, state = self.made.setdefault((n, shape), []), self.state.setdefault((n, shape), [None])
        while len(made) < chunks:
            begin, end = codec.chunks(shape[0])[len(made)]
            part = self.noise(n, shape)[None, begin:end].to(device)
            out, after = codec.encode_chunk(part, moved(state[-1], device))
            made.append(out.cpu())
            state.append(moved(after, "cpu"))
        return made[:chunks], state[chunks]


def together(states: list[Any]) -> Any:
    """States of single clips as that of a batch."""
    if isinstance(states[0], dict):
        return {name: together([state[name] for state in states]) for name in states[0]}
    return None if states[0] is None else torch.cat(states)


def moved(state: Any, device: torch.device | str) -> Any:
    """A (nested) dict of tensors on a device."""
    if isinstance(state, dict):
        return {name: moved(value, device) for name, value in state.items()}
    return None if state is None else state.to(device)
