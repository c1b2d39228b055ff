from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.attention_processor import AttnProcessor2_0 as Plain

from timelapse.model.consisti2v_attention import (
    SpatialAttention,
    TemporalAttention,
    around,
    rotary,
    rotate,
    with_first,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(width: int = 16, heads: int = 2, text: int | None = None) -> Attention:
    torch.manual_seed(1)
    return Attention(width, cross_attention_dim=text, heads=heads, dim_head=width // heads)


# -- the window ----------------------------------------------------------------------------------------------------


def test_a_place_inside_sees_its_eight_neighbours_and_itself():
    image = torch.arange(5 * 7).float()[None, :, None]  # 5 x 7 places, each its own number
    tokens = around(image, 5, 3)[0, :, :, 0]
    r, c = 2, 3
    expected = {(r + i) * 7 + c + j for i in (-1, 0, 1) for j in (-1, 0, 1)}
    assert set(tokens[r * 7 + c].tolist()) == expected


def test_a_corner_repeats_the_border():
    """(0,0) sees z00 three times beside itself, z01 and z10 twice, z11 once."""
    tokens = around(torch.arange(12.0)[None, :, None], 3, 3)[0, 0, :, 0].tolist()
    assert [tokens.count(x) for x in (0.0, 1.0, 4.0, 5.0)] == [4, 2, 2, 1]


def naive_temporal(attn, x, frames, height, window, rope):
    """The public way: gather hidden tokens (centre left out), join, project all of them, rotate at their positions."""
    clips = x.unflatten(0, (-1, frames))
    b, _, n, c = clips.shape
    image = clips[:, 0].transpose(1, 2).unflatten(2, (height, -1))
    side = window // 2
    padded = F.pad(image, (side, side, side, side), mode="replicate")
    slices = padded.unfold(2, window, 1).unfold(3, window, 1).flatten(4)  # (B,C,h,w,K^2)
    keep = [i for i in range(window**2) if i != window**2 // 2]
    near = slices[..., keep].permute(0, 2, 3, 4, 1).reshape(b * n, -1, c)
    hidden = clips.transpose(1, 2).reshape(b * n, frames, c)
    joint = torch.cat([hidden, near], dim=1)
    positions = torch.cat([torch.arange(frames), torch.zeros(near.shape[1], dtype=torch.long)])
    q = rotate(attn.to_q(hidden), rotary(positions[:frames], c, attn.heads, rope))
    k = rotate(attn.to_k(joint), rotary(positions, c, attn.heads, rope))
    split = lambda y: y.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    out = F.scaled_dot_product_attention(split(q), split(k), split(attn.to_v(joint)))
    out = attn.to_out[0](out.transpose(1, 2).flatten(2))
    return out.unflatten(0, (b, n)).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("rope", ["heads", "half"])
@pytest.mark.parametrize("window", [3, 5])
def test_window_attention_is_the_naive_gather(rope, window):
    attn, x = layer(), draw(2 * 4, 3 * 5, 16)
    ours = TemporalAttention(window, rope)(attn, x, frames=4, height=3)
    torch.testing.assert_close(ours, naive_temporal(attn, x, 4, 3, window, rope), rtol=0, atol=1e-6)


def test_the_window_copies_the_first_frames_keys_once_for_each_neighbour_and_no_frame():
    """What training keeps beyond plain attention over time grows with the window's places, not with the frames."""

    def kept(window, frames, places=48, width=16):
        attn, sizes = layer(width), {}

        def pack(x):
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        x = draw(frames, places, width).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = TemporalAttention(window)(attn, x, frames=frames, height=6)
        assert out.requires_grad  # held until all is counted
        return sum(sizes.values()) / (places * width * 4)  # in frames' keys

    for frames in (8, 32):
        assert kept(3, frames) - kept(1, frames) == pytest.approx(2 * 8, abs=0.2)  # keys and values of 8 neighbours


def test_without_a_window_it_is_plain_attention_over_time():
    attn, x = layer(), draw(2 * 4, 6, 16)
    ours = TemporalAttention(1, "heads")(attn, x, frames=4, height=2)
    assert not torch.allclose(ours, TemporalAttention(3)(attn, x, frames=4, height=2))
    torch.testing.assert_close(ours, naive_temporal(attn, x, 4, 2, 1, "heads"), rtol=0, atol=1e-6)


# -- rotary positions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rope", ["heads", "half"])
def test_scores_depend_on_distance_alone(rope):
    """Another start of the count, windows counted along, changes no score."""
    q, k = draw(5, 16), draw(7, 16, seed=1)
    at = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([0, 1, 2, 3, 4, 0, 0])

    def scores(shift):
        turned = [rotate(x, rotary(p + shift, 16, 2, rope)).unflatten(-1, (2, 8)) for x, p in zip((q, k), at)]
        return torch.einsum("ihd,jhd->hij", *turned)

    torch.testing.assert_close(scores(0), scores(11), rtol=0, atol=1e-5)


def test_half_leaves_half_of_the_heads_without_position():
    """The public code rotates before the heads are split, over the first half of all channels."""
    cos, sin = rotary(torch.arange(6), 32, 4, "half")
    assert (sin[:, 16:] == 0).all() and (cos[:, 16:] == 1).all() and (sin[1:, :16] != 0).all()
    _, every = rotary(torch.arange(6), 32, 4, "heads")
    assert torch.equal(every[:, :8], every[:, 24:]) and (every[1:] != 0).all()


def test_wrong_numbers_are_explained():
    with pytest.raises(ValueError, match="window is 4"):
        TemporalAttention(4)
    with pytest.raises(ValueError, match="rope is 'full'"):
        TemporalAttention(3, "full")
    with pytest.raises(ValueError, match="even width"):
        rotary(torch.arange(3), 6, 2, "heads")


# -- the first frame in space --------------------------------------------------------------------------------------


def doubled(q, k, v):
    """Every frame's keys with a copy of frame 0's, as the public code does it."""
    copy = lambda x: torch.cat([x, x[:, :1].expand_as(x)], dim=3)
    return F.scaled_dot_product_attention(q, copy(k), copy(v))


def test_first_frame_attention_is_that_over_doubled_keys_with_its_gradients():
    clips = [draw(2, 4, 2, 6, 8, seed=s).requires_grad_() for s in range(3)]
    weight = draw(2, 4, 2, 6, 8, seed=9)
    ours, theirs = with_first(*clips), doubled(*clips)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    grads = [torch.autograd.grad((out * weight).sum(), clips) for out in (ours, theirs)]
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_frame_0_sees_no_difference():
    """Its keys twice leave its softmax as it was."""
    attn, x = layer(), draw(2 * 4, 6, 16)
    plain, first = (SpatialAttention(on)(attn, x, frames=4).unflatten(0, (2, 4)) for on in (False, True))
    torch.testing.assert_close(plain[:, 0], first[:, 0], rtol=0, atol=1e-6)
    assert (plain[:, 1:] - first[:, 1:]).abs().max() > 1e-3
    torch.testing.assert_close(plain.flatten(0, 1), Plain()(attn, x), rtol=0, atol=1e-6)


def test_keys_of_the_first_frame_are_not_copied_to_all_frames():
    """What training keeps for the backward pass, the keys themselves included."""
    clips = [draw(1, 8, 2, 64, 8, seed=s).requires_grad_() for s in range(3)]

    def kept(attention):
        sizes = {x.data_ptr(): x.untyped_storage().nbytes() for x in clips}

        def pack(x):
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = attention(*clips)  # held until all is counted: memory that is freed could be used twice
        return sum(sizes.values()) / out.nbytes

    assert kept(doubled) > 7  # queries, twice the keys and values, the output
    assert kept(with_first) < 4.6


def test_captions_are_read_by_all_frames_without_being_repeated():
    attn, x, text = layer(text=12), draw(2 * 4, 6, 16), draw(2, 5, 12, seed=2)
    expected = Plain()(attn, x, encoder_hidden_states=text.repeat_interleave(4, dim=0))
    for processor in (SpatialAttention(), TemporalAttention(3, "heads")):
        out = processor(attn, x, encoder_hidden_states=text, frames=4, height=2)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    turned = TemporalAttention(3, "half")(attn, x, encoder_hidden_states=text, frames=4, height=2)
    torch.testing.assert_close(turned[::4], expected[::4], rtol=0, atol=1e-6)  # frame 0 is turned by nothing
    assert (turned - expected).abs().max() > 1e-3
