"""Recorded and rotated maps: what they are, and that no checkpointing, guidance or compilation mispairs them."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import nn

from timelapse.model.attention import Maps, TemporalAttention, Use, rotate

REVERSE = {"train": ["to_v", "to_out.0"], "rotate": "all", "delta": None}
N, PLACES = 5, 16


@pytest.fixture(scope="module")
def inputs():
    g = torch.Generator().manual_seed(5)
    return {
        "zt": torch.randn(2, N, 4, 4, 4, generator=g),
        "t": torch.tensor([0.5, 20.0]),
        "image": torch.randn(2, 4, 4, 4, generator=g),
        "token": torch.randn(2, 1, 16, generator=g),
    }


@pytest.fixture(scope="module")
def model(small_svd):
    model = small_svd(seed=2, reverse=REVERSE)
    with torch.no_grad():  # W' differs from W, or nothing could be told apart
        for p in model.backbone.reverse.values():
            p.mul_(1.5).add_(0.02)
    return model


def condition_of(inputs):
    from timelapse.types import Condition

    g = torch.Generator().manual_seed(6)
    latent = torch.zeros(2, N, 4, 4, 4)
    latent[:, [0, -1]] = torch.randn(2, 2, 4, 4, 4, generator=g)
    return Condition(latent, torch.ones(2, N, dtype=torch.bool), torch.randn(2, 2, 16, generator=g))


def recorded(backbone, inputs):
    maps = Maps()
    with torch.no_grad(), backbone.attention.use(Use(record=maps, layers=frozenset(backbone.attention.layers))):
        output = backbone.run(**inputs)
    return maps, output


def test_rotating_twice_gives_the_map_back_and_rows_still_sum_to_one():
    a = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(1)).softmax(-1)
    assert torch.equal(rotate(rotate(a)), a)
    torch.testing.assert_close(rotate(a).sum(-1), torch.ones(3, 2, 4))
    for j in range(4):
        for k in range(4):
            assert torch.equal(rotate(a)[..., 3 - j, 3 - k], a[..., j, k])


def test_maps_are_the_direct_computation_and_recording_changes_nothing(model, inputs):
    backbone = model.backbone
    layers = dict(backbone.unet.named_modules())
    seen = {}
    hooks = [
        layers[name].register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args[0]}))
        for name in backbone.attention.layers
    ]
    maps, output = recorded(backbone, inputs)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        torch.testing.assert_close(output, backbone.run(**inputs), rtol=0, atol=1e-5)
    assert set(maps) == set(backbone.attention.layers) and len(maps) == 4
    for name, a in maps.items():
        attn, x = layers[name], seen[name]
        heads = lambda y, attn=attn: y.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        q, k = heads(attn.to_q(x)), heads(attn.to_k(x))
        expected = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        torch.testing.assert_close(a, expected, rtol=0, atol=1e-6)
    assert maps.nbytes == sum(m.numel() * 4 for m in maps.values())
    down = maps["down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1"]
    assert down.shape == (2 * PLACES, 2, N, N)


def test_reversed_values_under_rotated_maps_give_the_reversed_output():
    unet = nn.Module()  # one layer is enough: W_o A' flip(V) = flip(W_o A V)
    from diffusers.models.attention_processor import Attention

    attn = Attention(query_dim=8, heads=2, dim_head=4)
    unet.set_attn_processor = lambda processors: attn.set_processor(next(iter(processors.values())))
    unet.attn_processors = {}
    unet.temporal_transformer_blocks = nn.ModuleList([nn.Module()])
    unet.temporal_transformer_blocks[0].attn1 = attn
    control = TemporalAttention(unet)
    x = torch.randn(3, N, 8, generator=torch.Generator().manual_seed(4))
    maps, layers = Maps(), frozenset(control.layers)
    with control.use(Use(record=maps, layers=layers)):
        ahead = attn(x)
    with control.use(Use(replay=maps, layers=layers)):
        back = attn(x.flip(1))
    torch.testing.assert_close(back, ahead.flip(1), rtol=0, atol=1e-6)
    assert (back - ahead).abs().max() > 1e-3


def test_one_batch_of_both_motions_equals_two_passes_with_stored_maps(model, inputs, caplog):
    backbone, condition = model.backbone, condition_of(inputs)
    caplog.set_level("INFO")
    backbone.said = 0
    answers = []
    for joint in (True, False):
        backbone.joint = joint
        with torch.no_grad():
            answers.append(backbone(inputs["zt"], inputs["t"], condition, motion="both")[0])
        # two clips, 3 layers at 16 places and the middle one at 4, 2 heads, 5 x 5 float32
        assert backbone.stored == (0 if joint else 2 * (3 * 16 + 4) * 2 * 25 * 4)
        assert caplog.text.count("attention maps stored at a time: 0.0 MiB") == (0 if joint else 1)
    backbone.joint = True
    torch.testing.assert_close(*answers, rtol=0, atol=1e-5)
    assert (answers[0][0] - answers[0][1]).abs().max() > 1e-2


def test_each_branch_of_guidance_reads_its_own_maps(model, inputs):
    """A batch of two clips equals the clips alone: no map leaks between clips or branches."""
    backbone, condition = model.backbone, condition_of(inputs)
    with torch.no_grad():
        pair, _ = backbone(inputs["zt"], inputs["t"], condition, motion="both")
        for b in (0, 1):
            one = type(condition)(condition.latent[b, None], condition.known[b, None], condition.tokens[b, None])
            alone, _ = backbone(inputs["zt"][b, None], inputs["t"][b, None], one, motion="both")
            torch.testing.assert_close(pair[:, b], alone[:, 0], rtol=0, atol=1e-5)


def gradients(model, inputs):
    backbone, condition = model.backbone, condition_of(inputs)
    backbone.zero_grad()
    output, _ = backbone(inputs["zt"], inputs["t"], condition)
    output.square().mean().backward()  # outside of any `use`: recomputed blocks must remember theirs
    return output.detach(), {n: p.grad.clone() for n, p in backbone.reverse.items()}


def test_gradient_checkpointing_changes_nothing_and_queries_and_keys_get_no_gradient(model, small_svd, inputs):
    output, plain = gradients(model, inputs)
    backbone = model.backbone
    assert all(p.grad is None for p in backbone.unet.parameters())
    assert all(g.abs().max() > 0 for g in plain.values())
    again = small_svd(seed=2, reverse=REVERSE, gradient_checkpointing=True)
    again.backbone.load_state_dict(backbone.state_dict())
    blocks = [m for m in again.backbone.unet.modules() if getattr(m, "gradient_checkpointing", False)]
    assert blocks
    same, checkpointed = gradients(again, inputs)
    torch.testing.assert_close(same, output, rtol=0, atol=1e-6)
    for name, g in plain.items():
        torch.testing.assert_close(checkpointed[name], g, rtol=1e-4, atol=1e-7)


def test_queries_and_keys_that_rotated_maps_replace_are_not_trained(small_svd):
    """W_q and W_k of f' would have no gradient at all."""
    for layers in ("all", "up"):
        with pytest.raises(ValueError, match="to_k and to_q would learn nothing .* model.reverse.rotate=none"):
            _ = small_svd(reverse={"train": ["to_q", "to_k", "to_v"], "rotate": layers, "delta": None}).backbone


def test_without_rotation_they_learn(small_svd, inputs):
    train = ["to_q", "to_k", "to_v", "to_out.0"]
    backbone = small_svd(seed=2, reverse={"train": train, "rotate": "none", "delta": None}).backbone
    output, _ = backbone(inputs["zt"], inputs["t"], condition_of(inputs))
    output.square().mean().backward()
    assert all(p.grad.abs().max() > 0 for p in backbone.reverse.values())


def test_untrained_without_rotation_is_the_same_network_seen_from_both_ends(small_svd, inputs):
    backbone = small_svd(seed=2, reverse={"train": ["to_v"], "rotate": "none", "delta": None}).backbone
    condition = condition_of(inputs)
    with torch.no_grad():
        both, twice = (backbone(inputs["zt"], inputs["t"], condition, motion=m)[0] for m in ("both", "twice"))
    torch.testing.assert_close(both, twice, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_numbers(model, small_svd, inputs):
    compiled = small_svd(seed=2, reverse=REVERSE)
    compiled.backbone.load_state_dict(model.backbone.state_dict())
    for block in compiled.backbone.blocks():
        block.compile(backend="aot_eager")
    condition = condition_of(inputs)
    with torch.no_grad():
        for motion in ("forward", "both", "backward"):
            want, got = (m.backbone(inputs["zt"], inputs["t"], condition, motion=motion)[0] for m in (model, compiled))
            torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_a_network_without_temporal_attention_and_a_missing_map_are_said(model, inputs):
    with pytest.raises(ValueError, match="no temporal self-attention"):
        TemporalAttention(nn.Linear(2, 2))
    backbone = model.backbone
    assert isinstance(backbone.unet, UNetSpatioTemporalConditionModel)
    with pytest.raises(ValueError, match="no map was recorded for down_blocks"):
        with backbone.attention.use(Use(replay=Maps(), layers=backbone.rotated)):
            backbone.run(**inputs)
