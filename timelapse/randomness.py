"""Randomness keyed by what it is for, never drawn from one shared stream.

A draw depends on (seed, purpose, step, clip key) alone, so a resumed run, another number of processes or another
batch order sees the same noise, and variants of an ablation are compared on the same noise.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def keyed_seed(*parts: object) -> int:
    """63-bit seed of the parts' text; the same on every machine and Python."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def keyed(*parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Generator seeded by the parts, e.g. `keyed(seed, "noise", step, key)`."""
    return torch.Generator(device).manual_seed(keyed_seed(*parts))


def keyed_each(keys: list[str], *parts: object) -> list[torch.Generator]:
    """One generator a clip: `keyed_each(batch["key"], seed, "noise", step)`."""
    return [keyed(*parts, key) for key in keys]


def randn(shape: tuple[int, ...], generators: list[torch.Generator], device: torch.device | str = "cpu") -> Tensor:
    """(B, *shape) unit Gaussian in float32, clip b from generators[b], drawn where the generator lives."""
    return torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generators]).to(device)
