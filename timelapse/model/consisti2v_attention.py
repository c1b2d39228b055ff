"""ConsistI2V's attention: every frame looks at the first frame, in space everywhere, in time around its own place.

Each class is an attention processor for diffusers' `Attention`; networks run on frames, (B t, N, C), N = h w places.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ROPES = ("heads", "half")


class SpatialAttention:
    """Self-attention of a frame with keys and values of [frame i; frame 0] (arXiv:2402.04324, eq. 3); text as ever.

    first_frame: False is Stable Diffusion's own attention. Frame 0's keys are projected once and never copied to all
    frames: one frame after another attends to [its own; frame 0's], and training computes that again for the backward
    pass instead of keeping it. Doubling the keys of frame 0 itself would not change its softmax, so it is not done.
    """

    def __init__(self, first_frame: bool = True):
        self.first_frame = first_frame

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
        temb: None = None,
        frames: int = 1,
        height: int = 1,
    ) -> Tensor:
        """hidden_states: (B t, N, C). encoder_hidden_states: None, or text (B,L,D), shared by a clip's frames."""
        if encoder_hidden_states is not None:
            return _text(attn, hidden_states, encoder_hidden_states, frames)
        q, k, v = (heads(to(hidden_states), attn) for to in (attn.to_q, attn.to_k, attn.to_v))
        if self.first_frame and frames > 1:
            clips = [x.unflatten(0, (-1, frames)) for x in (q, k, v)]
            return _out(attn, with_first(*clips).flatten(0, 1))
        return _out(attn, F.scaled_dot_product_attention(q, k, v))


class TemporalAttention:
    """Self-attention over the frames of one place, whose keys are its t frames and frame 0's neighbours (eq. 4).

    window: K; the K x K places around it in frame 0, repeated over the border. 1 is plain temporal attention.
    rope: rotary positions 0..t-1 (the neighbours have frame 0's). "heads": in every head, the usual way. "half": as the
    public code and weights have it, one ladder of frequencies over the first half of all channels, before they are
    split into heads, so that half of the heads know no position; it also rotates the queries of text attention.
    The neighbours' keys are frame 0's own, projected and rotated once, gathered afterwards.
    """

    def __init__(self, window: int = 3, rope: str = "heads"):
        if window < 1 or window % 2 == 0:
            raise ValueError(f"consisti2v: window is {window}; expected an odd number of places, e.g. 3, or 1 for none")
        if rope not in ROPES:
            raise ValueError(f"consisti2v: rope is {rope!r}; expected one of {', '.join(ROPES)}")
        self.window, self.rope = window, rope

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
        temb: None = None,
        frames: int = 1,
        height: int = 1,
    ) -> Tensor:
        """As `SpatialAttention`; `height` tells the shape of the N places."""
        table = rotary(torch.arange(frames, device=hidden_states.device), attn.inner_dim, attn.heads, self.rope)
        if encoder_hidden_states is not None:
            return _text(attn, hidden_states, encoder_hidden_states, frames, table if self.rope == "half" else None)
        by_place = lambda x: x.unflatten(0, (-1, frames)).transpose(1, 2)  # (B,N,t,C)
        q, k, v = (by_place(to(hidden_states)) for to in (attn.to_q, attn.to_k, attn.to_v))
        q, k = rotate(q, table), rotate(k, table)
        if self.window > 1:
            k, v = (torch.cat([around(x[:, :, 0], height, self.window), x[:, :, 1:]], dim=2) for x in (k, v))
        q, k, v = (heads(x.flatten(0, 1), attn) for x in (q, k, v))
        clips = F.scaled_dot_product_attention(q, k, v).unflatten(0, (-1, hidden_states.shape[1]))
        return _out(attn, clips.permute(0, 3, 2, 1, 4).flatten(0, 1))


def heads(x: Tensor, attn: Attention) -> Tensor:
    """(B,N,C) -> (B,heads,N,C/heads)."""
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def with_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of each frame to [itself; frame 0]. All (B,t,heads,N,d)."""

    def one(q: Tensor, k: Tensor, v: Tensor, k0: Tensor, v0: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, torch.cat([k, k0], dim=-2), torch.cat([v, v0], dim=-2))

    train = torch.is_grad_enabled() and q.requires_grad
    first = k[:, 0], v[:, 0]
    out = [F.scaled_dot_product_attention(q[:, 0], *first)]
    for i in range(1, q.shape[1]):
        own = q[:, i], k[:, i], v[:, i]
        out.append(checkpoint(one, *own, *first, use_reentrant=False) if train else one(*own, *first))
    return torch.stack(out, dim=1)


def around(first: Tensor, height: int, window: int) -> Tensor:
    """(B,N,C) of one frame -> (B,N,window^2,C): each place's neighbours and itself, borders repeated."""
    side = window // 2
    image = first.unflatten(1, (height, -1)).permute(0, 3, 1, 2)  # (B,C,h,w)
    # replicate's backward has no deterministic kernel on GPUs, indexing has
    rows, columns = (torch.arange(-side, n + side, device=first.device).clamp(0, n - 1) for n in image.shape[2:])
    padded = image[:, :, rows][..., columns]
    return padded.unfold(2, window, 1).unfold(3, window, 1).permute(0, 2, 3, 4, 5, 1).flatten(3, 4).flatten(1, 2)


def rotary(positions: Tensor, width: int, heads: int, rope: str = "heads") -> tuple[Tensor, Tensor]:
    """Cosines and sines (t, width) of RoPE (Su et al. 2021, arXiv:2104.09864): channels 2i and 2i + 1 turn together
    by position * 10000^(-2i/d), d a head's width, or half of all channels for "half", where the rest stands still."""
    d = width // heads if rope == "heads" else width // 2
    if d % 2:
        raise ValueError(
            f"consisti2v: rotary positions need an even width, got {d} (of {width} channels, {heads} heads)"
        )
    ladder = 10000.0 ** (-torch.arange(0, d, 2, device=positions.device).float() / d)
    angles = (positions[:, None].float() * ladder).repeat_interleave(2, dim=1)  # (t,d)
    angles = angles.repeat(1, heads) if rope == "heads" else F.pad(angles, (0, width - d))
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """(...,t,C) turned by `rotary`'s table."""
    cos, sin = (part.to(x.dtype) for part in table)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack([-odd, even], dim=-1).flatten(-2) * sin


def _text(
    attn: Attention, hidden: Tensor, text: Tensor, frames: int, table: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """All places of all frames of a clip attend to its caption; the caption's keys are not repeated."""
    q = attn.to_q(hidden)
    if table is not None:
        cos, sin = (part[:, None] for part in table)
        q = rotate(q.unflatten(0, (-1, frames)), (cos, sin)).flatten(0, 1)
    clip = heads(q.unflatten(0, (-1, frames)).flatten(1, 2), attn)  # (B,heads,t N,d)
    out = F.scaled_dot_product_attention(clip, *(heads(to(text), attn) for to in (attn.to_k, attn.to_v)))
    return _out(attn, out.unflatten(2, (frames, -1)).transpose(1, 2).flatten(0, 1))


def _out(attn: Attention, x: Tensor) -> Tensor:
    """(B t, heads, N, d) -> (B t, N, C) through the output projection."""
    return attn.to_out[1](attn.to_out[0](x.transpose(1, 2).flatten(2)))
