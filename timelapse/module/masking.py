"""Which tokens of a clip a masked-modelling step hides: equally many of every clip, so that batches stack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockMask:
    """Spatial blocks, the same at all times, until `ratio` of the picture is hidden (V-JEPA, Bardes et al.
    2024).

    V-JEPA unites a fixed number of blocks and cuts every clip of the batch down to the shortest context; here
    blocks are added until the ratio is reached and the surplus of the last one is shown again, which wastes
    no context. block: share of the picture that a block covers. aspect: range of its height / width, drawn
    log-uniformly. time: share of the latent frames in which anything is shown at all, a window at a random
    place; below 1 the network must predict other times, not only other places.
    """

    ratio: float
    block: float
    aspect: tuple[float, float] = (0.75, 1.5)
    time: float = 1.0

    def hidden(self, grid: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """(t,h,w) bool."""
        t, h, w = grid
        place = _blocks(h, w, round(self.ratio * h * w), self.block, self.aspect, generator)
        shown = max(1, round(self.time * t))
        start = torch.randint(t - shown + 1, (), generator=generator)
        hidden = torch.ones(t, h, w, dtype=torch.bool)
        hidden[start : start + shown] = place
        return hidden


@dataclass(frozen=True)
class TubeMask:
    """Random places, the same at all times (VideoMAE, Tong et al. 2022, section 3.3). ratio: share hidden."""

    ratio: float

    def hidden(self, grid: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """(t,h,w) bool."""
        t, h, w = grid
        place = torch.zeros(h * w, dtype=torch.bool)
        place[torch.randperm(h * w, generator=generator)[: round(self.ratio * h * w)]] = True
        return place.view(h, w).expand(t, h, w).clone()


def _blocks(
    h: int, w: int, count: int, share: float, aspect: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """(h,w) bool with exactly `count` true, gathered block by block."""
    mask = torch.zeros(h, w, dtype=torch.bool)
    low, high = torch.tensor(aspect).log().tolist()
    while int(mask.sum()) < count:
        ratio = torch.empty(()).uniform_(low, high, generator=generator).exp().item()
        bh = min(h, max(1, round((share * h * w * ratio) ** 0.5)))
        bw = min(w, max(1, round((share * h * w / ratio) ** 0.5)))
        top = int(torch.randint(h - bh + 1, (), generator=generator))
        left = int(torch.randint(w - bw + 1, (), generator=generator))
        new = torch.zeros_like(mask)
        new[top : top + bh, left : left + bw] = True
        new &= ~mask
        surplus = int(mask.sum() + new.sum()) - count
        if surplus > 0:
            cells = new.flatten().nonzero()[:, 0]
            new.view(-1)[cells[torch.randperm(len(cells), generator=generator)[:surplus]]] = False
        mask |= new
    return mask


def split(hidden: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Masks (t,h,w), one a clip -> token numbers in order (t,h,w): shown (B,n), hidden (B,m)."""
    flat = [m.flatten() for m in hidden]
    return torch.stack([(~m).nonzero()[:, 0] for m in flat]), torch.stack([m.nonzero()[:, 0] for m in flat])
